"""What the first lines of the page and its words say: the answers in short, and a glossary."""

from collections import Counter

from docs.published.cells import Studies, at_level, distinct, link, tested, titles
from docs.published.picture import CAPTION, TITLE, effects, shown
from docs.published.study import TUNED, TUNING
from docs.published.tuned import chosen
from docs.published.weights import over_weights
from moebench.report.paper.findings import findings
from moebench.report.show.numbers import count_range

ANSWERS = [  # findings of the paper that the page begins with
    findings()[name]["claim"]
    for name in ("01-global-below-micro", "02-shuffled-below-micro", "03-shuffled-equals-global")
]
DIFFER = "tests differ"
UNIT = """\
Differences are of the validation loss, in nats a byte, paired by seed. Below 0, the arm named first
is better ([words](#words))."""
ROLES = ("global", "shuffled")  # arms that say no more than the finding does
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
    first, *others = [_tested(studies, claim) for claim in ANSWERS]
    lines = [first, *over_weights(studies), *others, _counted(studies), _small(studies)]
    rooms = [
        f"{at_level(effect)} in {link(title)}"
        for name, title in titles(studies).items()
        for effect in studies[name].found("headroom", arm="T")
    ]
    if rooms:
        known = "- H = T - TD, what the domain is worth to a router that knows the token, is "
        lines.append(f"{known}{'; '.join(rooms)}.")
    if TUNING in studies:
        size, *takers = chosen(studies)
        lines += [f"- {size}", *(f"  - {taker}" for taker in takers)]
    drawn = [shown(TITLE, "results"), f"*{CAPTION}*"] * (effects(studies) is not None)
    written = [line for line in lines if line]
    return [UNIT, "\n".join(written), *drawn] if written else []


def _tested(studies: Studies, claim: str) -> str:
    """What the tests of a finding say, in nats a byte; "" without one."""
    told = [
        f"{effect['verdict']}, {at_level(effect)} in {link(title)}"
        + f" with `{effect['arm']}`" * (effect["arm"] not in ROLES)
        for title, effect in tested(studies, claim=claim)
    ]
    return f"- **{claim.removesuffix('.')}**: {'; '.join(told)}." if told else ""


def words(studies: Studies) -> list[str]:
    """The words of the page, where there is a study."""
    return ["## Words", WORDS] * bool(titles(studies))


def _counted(studies: Studies) -> str:
    """How many findings of the paper are tested, with what outcome, and on which tests differ."""
    verdicts: dict[str, Counter[str]] = {}
    for _, _, effect in distinct(studies):
        if effect["p"] is not None:
            verdicts.setdefault(effect["claim"], Counter())[effect["verdict"]] += 1
    if not verdicts:
        return ""
    found = Counter(next(iter(of)) if len(of) == 1 else DIFFER for of in verdicts.values())
    told = f"- Tested here: {len(verdicts)} of the paper's {len(findings())} findings "
    told += f"({_numbers(found)})."
    mixed = [
        f"*{claim.removesuffix('.')}* ({_numbers(of)})"
        for claim, of in verdicts.items()
        if len(of) > 1
    ]
    return told + f" Tests differ on {'; '.join(mixed)}." * bool(mixed)


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
