"""What the first lines of the page and its words say: the answers in short, and a glossary."""

from collections import Counter

from docs.published.cells import Studies, count, distinct, ends, link, said, tested, titles
from docs.published.papers import FIRST
from docs.published.picture import CAPTION, TITLE, effects, shown
from docs.published.study import TUNED, TUNING
from docs.published.tuned import chosen
from moebench.report.paper.findings import findings
from moebench.report.show.numbers import as_percent

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
    """The answers in a line each."""
    lines = []
    for title, effect in tested(studies, claim=FIRST):
        lines.append(
            f"- `{effect['arm']}` less `{effect['against']}` is {ends(effect)} {effect['unit']} at "
            f"{as_percent(1 - effect['level'])}, with {len(effect['seeds'].split())} seeds "
            f"({link(title)}). The paper's first finding: {said(effect).replace(': ', ', ', 1)}."
        )
    lines += [line for line in (_counted(studies), _small(studies)) if line]
    for name, title in titles(studies).items():
        for effect in studies[name].found("headroom", arm="T"):
            lines.append(
                f"- H = T - TD, what the domain is worth to a router that knows the token "
                f"([words](#words)), is {ends(effect)} nats a byte ({link(title)})."
            )
    lines += [f"- {chosen(studies[TUNING])}"] if TUNING in studies else []
    drawn = [shown(TITLE, "results"), f"*{CAPTION}*"] * (effects(studies) is not None)
    return ["\n".join(lines), *drawn] if lines else []


def words(studies: Studies) -> list[str]:
    """The words of the page, where there is a study."""
    return ["## Words", WORDS] * bool(titles(studies))


def _counted(studies: Studies) -> str:
    """How many findings of the paper are tested, and with what outcome."""
    verdicts: dict[str, set[str]] = {}
    for _, _, effect in distinct(studies):
        if effect["p"] is not None:
            verdicts.setdefault(effect["claim"], set()).add(effect["verdict"])
    if not verdicts:
        return ""
    found = Counter(" and ".join(sorted(of)) for of in verdicts.values())
    told = ", ".join(f"{verdict}: {number}" for verdict, number in found.most_common())
    return f"- Tested here: {len(verdicts)} of the paper's {len(findings())} findings ({told})."


def _small(studies: Studies) -> str:
    """How small the models are."""
    made = [of for name, of in studies.items() if name not in TUNED and of.found("difference")]
    keys = ("model.num_layers", "model.d_model")
    sizes = {tuple(of.settings.get(key) for key in keys) for of in made}
    tokens = {count(of.made()["tokens"]) for of in made}
    if len(sizes) != 1 or len(tokens) != 1 or None in next(iter(sizes)):
        return ""
    [(layers, width)], [seen] = sizes, tokens
    return (
        f"- These models have {layers} layers of width {width} and saw {seen} tokens; the paper's "
        "saw 120 to 400 billion. What shows this early need not last."
    )
