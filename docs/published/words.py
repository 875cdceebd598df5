"""What the first lines of the page and its words say: the answers in short, and a glossary."""

from collections import Counter

import numpy as np

from benchmarks.headroom_size import LEARNED
from docs.published.beyond import T_AND_TD
from docs.published.cells import Said, Studies, at_level, distinct, link, said, titles
from docs.published.papers import alike, between, explained, named_arm
from docs.published.picture import CAPTION, TITLE, UNIT, effects, shown
from docs.published.study import TUNED, TUNING, Study
from docs.published.tuned import chosen
from docs.published.weights import over_weights
from moebench.plans import PRIMARY
from moebench.report.paper.findings import findings
from moebench.report.show.numbers import count_range, four_decimals, listed

ANSWERS = [  # findings of the paper that the page begins with
    findings()[name]["claim"]
    for name in ("01-global-below-micro", "02-shuffled-below-micro", "03-shuffled-equals-global")
]
DIFFER = "tests differ"
ABOUT = """\
Differences are of the validation loss, in nats a byte, paired by seed. Below 0, the arm named first
is better ([words](#words))."""
ELIGIBLE = """\
Studies marked *eligible* stand first: their size meets the rule for sizes, which was applied to
seeds that no study reports ([how it was chosen](#the-size-and-the-noise))."""
HEADROOM = """\
- H = T - TD is what the domain is worth to a router that knows the token. T routes by its hash."""
WORDS = """\
- **Arms.** `micro` balances the loads of experts over each micro-batch (`micro_bsz` sequences),
  `global` over the whole step, `global-8` over 8 of its sequences, `none` not at all. `shuffled`
  balances over as few tokens as `micro`, drawn from the whole step ([scopes](concepts.md#scope)).
  `perturb=1e-06` marks a twin, which differs by noise alone. `homogeneity` is 1 where each
  micro-batch is of one domain, as it is where no arm sets it, and 0 where domains are mixed.
- **Nats a byte** are the validation loss; lower is better. A difference of -0.01 is a perplexity
  of bytes that is 1 % lower. Differences are paired: runs of one seed see the same text from the
  same initial weights.
- **Verdicts.** *Agrees*: the test decides in the paper's direction. *Contradicts*: it decides
  against it. *Cannot tell*: it decides nothing. *Within margin*: the interval lies within the
  margin of the stopping rule, around 0. *The treatment did not take*: nor do the loads of
  micro-batches differ by two deviations of a run, though pairs may still tell them apart.
  p is that of the test ([how verdicts are given](reading.md#verdicts)).
- **H = T - TD** is what the domain is worth to a router that knows the token: the loss with experts
  fixed by a hash of the token (T, `hash`), less that with experts fixed by the domain and this hash
  (TD, `domain_token`); see [headroom](reading.md#headroom). It is computed in bits a byte, other
  differences in nats a token, so that the two may differ in the last digit.
- **MaxVio** is the largest load of an expert over the mean, less 1, so that 0 is even: *micro* over
  micro-batches of training, *valid* over the validation set ([load](metrics.md#is-it-balanced)).
- **Domain bits** tell how much the expert says of the domain (0: nothing); they check that a scope
  acts, and are no quality. **Replay cost** is the loss in nats a token when tokens take the experts
  that they took in another domain ([both](metrics.md#does-it-specialise)).
- **Slowdown** is that of expert layers over ranks that wait for the busiest one, computed from
  loads, not timed (1: none; [cost](metrics.md#what-does-it-cost))."""


def in_short(studies: Studies) -> list[str]:
    """The answers in a line each, then how far they reach."""
    tests = [of.effect for of in distinct(studies, metric=PRIMARY) if studies[of.name].eligible]
    claims = [*ANSWERS, *(of["claim"] for of in tests if of["p"] is not None)]
    first, *others = [_answer(studies, claim) for claim in dict.fromkeys(claims)]
    lines = [first, *over_weights(studies), *others, *_counted(studies), _small(studies)]
    if rooms := _rooms(studies):
        lines += [HEADROOM, *rooms]
    if TUNING in studies:
        size, *takers = chosen(studies)
        lines += [f"- {size}", *(f"  - {taker}" for taker in takers)]
    drawn = [shown(TITLE, "results"), f"*{CAPTION}*"] * (effects(studies) is not None)
    written = [line for line in lines if line]
    marked = any(of.eligible for of in studies.values())
    return ["\n".join([ABOUT, *[ELIGIBLE] * marked]), "\n".join(written), *drawn] if written else []


def _answer(studies: Studies, claim: str) -> str:
    """What studies say of a finding, a line each: tests, and all of the eligible size; or ""."""
    found = [
        each
        for each in distinct(studies, claim=claim)
        if each.effect["p"] is not None or studies[each.name].eligible
    ]
    told = [
        f"  - {link(group[0].title)}: {_said(studies[group[0].name], group)}."
        for group in alike(found)
    ]
    return "\n".join([f"- **{claim.removesuffix('.')}**", *told]) if told else ""


def _said(study: Study, group: list[Said]) -> str:
    """The verdict and the effect of what a study says alike, or the range of several arms.

    The reason stands with it where the sign of the effect is not what decides.
    """
    effect = group[0].effect
    verdict = effect["verdict"] + f" ({effect['text']})" * explained(effect)
    unit = f" {effect['unit']}" * (effect["unit"] != UNIT)
    if len(group) > 1:
        return f"{verdict}, {between(group, unit)}"
    arm = named_arm(study, effect)
    return f"{verdict}, {at_level(effect)}{unit}" + f" with {arm}" * bool(arm)


def _rooms(studies: Studies) -> list[str]:
    """H of each study that measured it, its test, and where global ends beside T."""
    told = []
    for name, title in titles(studies).items():
        for room in studies[name].found("headroom", arm="T"):
            beside = studies[name].found("headroom", arm="global", part=room["part"])
            parts = [
                f"H is {at_level(room)}",
                *(f"`global` less T is {at_level(of)}" for of in beside),
            ]
            sentences = [", and ".join(parts), *_qualified(studies[name], room["part"])]
            told.append(f"  - {link(title)}: {'. '.join(sentences)}.")
    return told


def _qualified(study: Study, part: str) -> list[str]:
    """What the test of H among all arms says, and that learned routers are behind T if they are."""
    token, both = T_AND_TD
    tests = study.found("difference", arm=both, against=token, metric=PRIMARY, part=part)
    told = [
        f"TD less T, tested among all arms of the study: {said(of)}"
        for of in tests
        if of["p"] is not None
    ]
    ends = {of["arm"]: of["value"] for of in study.found("headroom", against="T", part=part)}
    values = [ends[arm] for arm in LEARNED if arm in ends]
    if study.eligible and len(values) == len(LEARNED) and np.mean(values) > 0:
        arms = listed([f"`{arm}`" for arm in LEARNED])
        behind = four_decimals(float(np.mean(values)))
        told.append(
            f"On these seeds {arms} end on average {behind} behind T; on those to which the rule "
            "for sizes was applied they did not"
        )
    return told


def words(studies: Studies) -> list[str]:
    """The words of the page, where there is a study."""
    return ["## Words", WORDS] * bool(titles(studies))


def _counted(studies: Studies) -> list[str]:
    """How many findings of the paper are tested, at which size, and with what outcome."""
    tests = [each for each in distinct(studies) if each.effect["p"] is not None]
    claims = {each.effect["claim"] for each in tests}
    if not claims:
        return []
    first, rest = ([of for of in tests if studies[of.name].eligible is on] for on in (True, False))
    sizes = {"at an eligible size": first, "at others" if first else "here": rest}
    told = [f"  - {at} {_outcomes(of)}" for at, of in sizes.items() if of]
    number = f"{len(claims)} {'is' if len(claims) == 1 else 'are'}"
    return [f"- Of the paper's {len(findings())} findings, {number} tested:", *told]


def _outcomes(tests: list[Said]) -> str:
    """Findings by the verdict of their tests, and those on which tests differ."""
    verdicts: dict[str, Counter[str]] = {}
    for each in tests:
        verdicts.setdefault(each.effect["claim"], Counter())[each.effect["verdict"]] += 1
    found = Counter(next(iter(of)) if len(of) == 1 else DIFFER for of in verdicts.values())
    mixed = [
        f"*{claim.removesuffix('.')}* ({_numbers(of)})"
        for claim, of in verdicts.items()
        if len(of) > 1
    ]
    differ = f" Tests differ on {'; '.join(mixed)}." * bool(mixed)
    return f"{len(verdicts)} ({_numbers(found)}).{differ}"


def _numbers(found: Counter[str]) -> str:
    return ", ".join(f"{verdict}: {number}" for verdict, number in found.most_common())


def _small(studies: Studies) -> str:
    """How small the models are."""
    made = [of for name, of in studies.items() if name not in TUNED and of.found("difference")]
    keys = ("model.num_layers", "model.d_model")
    sizes = sorted({tuple(of.settings.get(key, 0) for key in keys) for of in made})
    tokens = [seen for of in made if (seen := of.made()["tokens"]) is not None]
    if not tokens or not all(map(all, sizes)):
        return ""
    models = " or ".join(f"{layers} layers of width {width}" for layers, width in sizes)
    return (
        f"- These models have {models} and saw {count_range((min(tokens), max(tokens)))} tokens; "
        "the paper's saw 120 to 400 billion. What shows this early need not last."
    )
