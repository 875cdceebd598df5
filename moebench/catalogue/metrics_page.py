"""The page of all metrics, docs/metrics.md, made from their declarations.

`python -m moebench.catalogue.metrics_page > docs/metrics.md` makes it again.
"""

from collections.abc import Iterable, Iterator, Sequence

from moebench.catalogue import METRICS, Metric

COMMAND = "python -m moebench.catalogue.metrics_page > docs/metrics.md"
COLUMNS = ("metric", "meaning", "unit", "window", "better", "even", "random", "summary", "shown in")

INTRODUCTION = f"""\
# Metrics

`metrics.jsonl`, `summary.json`, TensorBoard and reports use the same names.
[Inspecting runs](inspecting.md) shows how to look at them. To change this page, edit the
declarations in `moebench/catalogue/` and run `{COMMAND}`.

- **window**: the tokens over which a value is taken. For a micro-batch, the value is the mean over
  the micro-batches of a step.
- **better**: whether lower or higher values are better, if either is.
- **even**: the value if all experts have the same load.
- **random**: the expected value if each token chose its k of E experts at random. Compare with it,
  not with 0. The manifest holds the simulated values (`random_load`, `random_slowdown`).
- **summary**: what `summary.json` holds: the value of the last evaluation, the mean over the last
  tenth of the steps, the value at step 0 (first), or a value computed at the end of the run.
- **shown in**: TensorBoard's first page, its page HParams, `moebench inspect`, and the usual tables
  of `moebench report`. TensorBoard's page Scalars shows nearly all metrics, and
  `moebench report --metrics '*'` prints all metrics of the summaries.
"""

NOTES = {
    "Is it learning?": """\
No balance term enters these metrics. Choose settings by `tune/*`, and report `valid/*`.""",
    "Is it balanced?": """\
Values are means over layers. c are the counts of a layer's E experts in a window of tokens.""",
    "Does it specialise?": """\
Values are means over layers. The specialisation of an untrained router is not 0: tokens differ, and
so do the tokens of the domains. Compare with the value given the token, and with that at step 0.

Finite counts show some information about any labels. So the mean over 32 permutations of the
sequences' domain labels is subtracted. Given the token, labels are permuted for each token
separately, among the sequences that hold it. This keeps which tokens meet which domains. A
permutation of whole sequences would not keep it, and would count vocabulary as knowledge of the
domain.

`router/replay_cost` is measured at the last evaluation, with two more forward passes over the
validation text. The first takes each token's experts from a random place where the same token
occurs in another domain, the second from another sequence of its own domain. A token without both
keeps its experts. The difference is what the router's knowledge of the domain is worth to the loss.

Prescribed routers have known values, against which learned ones can be read:

| of | `hash` | `sequence_hash` | `domain` | `domain_token` | `random` |
|---|---|---|---|---|---|
| purity | by the tokens | 1 / domains | 1 | 1 | 1 / domains |
| domain bits | by the tokens | 0 | log2 domains | log2 domains | 0 |
| domain bits given the token | 0 | 0 | the largest | the largest | 0 |
| domain bits given the position | by the tokens | 0 | log2 domains | log2 domains | 0 |
| utilisation, normalised entropy | 1 | 1 | 1 | 1 | 1 |
| replay cost | 0 | 0 | above 0 | above 0 | 0 |

*By the tokens*: the more the tokens of domains differ, the more a hash of the token tells of the
domain. *The largest*: what a token leaves open of the domain, log2 domains if all domains use all
tokens alike. `domain` and `domain_token` are even only if each of D equally frequent domains has
E / D experts. Finite validation text lies a little off all of these.

`router/changed` and `router/saturation` compare the experts of a probe: 8 validation sequences,
spread over the domains, the same in every evaluation and run of the data. `routing/step-N.npz`
holds the arrays behind these numbers: counts by layer, domain and expert, how many tokens chose
each pair of experts, and the probe's experts.""",
    "What does it cost?": """\
`ep/*` is a model of expert parallelism. R virtual ranks hold the experts of every layer and
dispatch R micro-batches together, one each. A layer lasts as long as its most loaded rank.
`ep/slowdown/R` is for R ranks: each power of two up to 64 that divides both E and the number of
micro-batches in a step. `ep/slowdown` is for 8 ranks, or for the most below 8. Placements use only
the loads of earlier steps: a mean that decays by 0.9 per step.

The paper's timings of one model (its Table 5: 1.55 s per step for micro, 1.64 s for global, 1.59 s
for global with 1 % micro) also differ in communication, which it estimates at 1 %. Compare ratios.
Experts are only a part of a step.""",
    "What pulls at the routers?": """\
Forces are gradients in the weights of all routers, each term with its weight. They are taken at
evaluations, on the batch of the step before.""",
}


def metrics_page() -> str:
    """The page in Markdown: a section a question."""
    questions: dict[str, list[Metric]] = {}
    for metric in METRICS.values():
        questions.setdefault(metric.question, []).append(metric)
    parts = [INTRODUCTION]
    for question, metrics in questions.items():
        parts.append(f"## {question}\n")
        if note := NOTES.get(question):
            parts.append(f"{note}\n")
        parts.append("".join(_table(metrics)))
    return "\n".join(parts)


def _table(metrics: Iterable[Metric]) -> Iterator[str]:
    yield _line(COLUMNS)
    yield _line(["---"] * len(COLUMNS))
    for metric in metrics:
        yield _line(
            [
                f"`{metric.key}`",
                _meaning(metric),
                metric.unit,
                metric.window,
                "" if metric.direction == "neither" else metric.direction,
                "" if metric.even is None else f"{metric.even:g}",
                "" if metric.random is None else metric.random.words,
                "" if metric.taken == "never" else str(metric.taken),
                ", ".join(shown_in(metric)),
            ]
        )


def _meaning(metric: Metric) -> str:
    each = f"with `/<{metric.per}>`, for each {metric.per}" if metric.per and metric.whole else ""
    needs = f"needs {metric.needs}" if metric.needs else ""
    return "; ".join(filter(None, (metric.meaning, each, needs)))


def shown_in(metric: Metric) -> list[str]:
    """The views that show a metric without being asked for it."""
    views = {
        "TensorBoard": metric.chart or metric.part_chart,
        "HParams": metric.hparam,
        "inspect": metric.inspected,
        "report": metric.column or metric.claim,
    }
    return [name for name, shown in views.items() if shown]


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
