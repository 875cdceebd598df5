"""What the declaration of a metric says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["lower", "higher", "neither"]
Window = Literal["micro-batch", "step", "validation set", "run"]
Taken = Literal["mean", "last", "first", "end", "never"]
Scalars = Literal["all", "whole", "none"]
Table = Literal["load", "perplexity", "cost"]


@dataclass(frozen=True)
class RandomRouting:
    """What is known of a run in which every token chooses its experts at random.

    Attributes:
        loads: window (`micro`, `batch`, `global`) -> load metric -> its simulated mean.
        slowdown: the simulated mean of `ep/slowdown`.
        num_experts: of a layer; None if unknown.
        top_k: experts of a token; None if unknown.
    """

    loads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slowdown: float | None = None
    num_experts: int | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class Random:
    """The value of a metric under random routing.

    Attributes:
        words: the value as documentation states it.
        value: computes it; None if the run does not say enough.
    """

    words: str
    value: Callable[[RandomRouting], float | None] = lambda _: None


def simulated(window: str, name: str, words: str = "by simulation") -> Random:
    """The mean of a load metric over the simulation that the run's manifest holds."""
    return Random(words, lambda run: run.loads.get(window, {}).get(name))


def formula(words: str, value: Callable[[int, int], float]) -> Random:
    """A function of the number of experts E and of the k experts that each token takes."""

    def of_run(run: RandomRouting) -> float | None:
        if run.num_experts is None or run.top_k is None:
            return None
        return value(run.num_experts, run.top_k)

    return Random(words, of_run)


@dataclass(frozen=True)
class Column:
    """A column of one of the report's tables. Columns stand in the order of the catalogue.

    Attributes:
        table: which one.
        heading: in two lines at most.
        digits: decimals.
        note: what the table's caption adds about it.
        optional: whether the column is left out if no arm has the metric.
    """

    table: Table
    heading: str
    digits: int
    note: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Claim:
    """How the report describes a difference to the baseline, after the arm's name.

    Attributes:
        less: what an arm does whose value is smaller.
        more: what an arm does whose value is larger.
        values: a format for the arm's value and the baseline's.
    """

    less: str
    more: str
    values: str


@dataclass(frozen=True)
class Metric:
    """A number that rows, summaries or evaluations hold, declared once for all who show it.

    Attributes:
        name: `group/name`, the key in `metrics.jsonl` and `summary.json`.
        meaning: one line of Markdown.
        question: the heading under which the documentation and TensorBoard show it.
        unit: "" for a plain number.
        window: the tokens over which it is taken.
        direction: which values are better.
        even: its value if all experts have the same load; None if that does not fix it.
        random: its value under random routing.
        taken: what a summary holds: the `mean` over the settled steps (see `SETTLED`), the `last`
            evaluation, the value of `of` in the `first` row, what is computed once at the `end`
            of the run, or `never` anything (lists). None, the default, becomes `last` for the
            validation set and `mean` for every other window.
        of: of a metric that is taken `first`: the metric whose first value it is.
        per: what `<per>` stands for if there is a value for each, as `name/<per>`; "" for none.
        whole: whether there is a value without `/<per>`.
        needs: what a run must have to write it; "" for every run of an MoE.
        scalars: what TensorBoard shows as curves: `all`, the `whole` without `/<per>`, or `none`.
        chart: title of its chart on TensorBoard's first page; "" for no chart. {random} becomes
            the value under random routing, {most} the largest value that the domains allow.
        part_chart: the same for each `/<per>`, for which {part} stands.
        hparam: whether it is a column of TensorBoard's page HParams.
        printed: whether `moebench train` prints it at the end of a run.
        inspected: what `moebench inspect` says of it, in 35 characters at most; "" to leave it out.
        column: of the report.
        claim: of the report.
    """

    name: str
    meaning: str
    question: str = ""
    unit: str = ""
    window: Window = "step"
    direction: Direction = "neither"
    even: float | None = None
    random: Random | None = None
    taken: Taken | None = None
    of: str = ""
    per: str = ""
    whole: bool = True
    needs: str = ""
    scalars: Scalars = "all"
    chart: str = ""
    part_chart: str = ""
    hparam: bool = False
    printed: bool = False
    inspected: str = ""
    column: Column | None = None
    claim: Claim | None = None

    def __post_init__(self) -> None:
        if self.taken is None:
            taken = "last" if self.window == "validation set" else "mean"
            object.__setattr__(self, "taken", taken)

    @property
    def key(self) -> str:
        """The name as documentation writes it: `valid/ppl`, `load/utilization/<layer>`."""
        return self.name if self.whole else f"{self.name}/<{self.per}>"

    def title(self, random: float | None, most: float | None) -> str:
        """The title of its chart.

        Args:
            random: its value under random routing.
            most: the largest value that the domains allow, in bits.
        """
        return self.chart.format(
            random="" if random is None else f", random routing: {random:.3g}",
            most="" if most is None else f", all: {most:.2g}",
        )
