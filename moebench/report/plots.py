"""Plots of one table: what was balanced over, what it cost, and how sure that is.

Each makes a figure, or none where the table has nothing for it. Arms keep their colour, marker and
line style over all plots (`drawing.py`). Bars and bands are 95 % intervals, over seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moebench.records import Record
from moebench.report.arms import Arm, Described, Table
from moebench.report.drawing import drawing, encoded, errors, look, short
from moebench.report.findings import share_before_global
from moebench.report.frame import Frame
from moebench.report.frontier import MAX_VIO, WEIGHT, but_for_weight, frontier
from moebench.report.reading import PRIMARY
from moebench.report.words import unit_of

NATS = "validation nats a token"
MOST_HEATMAPS = 6
SMOOTHED = 12  # points of a loss curve


@dataclass(frozen=True)
class Plot:
    """A picture of one table.

    Attributes:
        name: of its files.
        title, caption: in words; a caption says what to look at and what bars and bands are.
        svg, png: the files.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes


def plots(table: Table, frame: Frame) -> list[Plot]:
    """All that the table has something for, the most telling first."""
    made = [make(table, frame) for make in _PLOTS]
    return [each for each in made if each is not None]


def differences(table: Table, _: Frame) -> Plot | None:
    """Forest plot of the primary endpoint."""
    arms = [arm for arm in table.arms if arm.name in table.comparisons.arms]
    if not arms:
        return None
    with drawing(size=(6.4, 1.3 + 0.34 * len(arms))) as (figure, axes):
        axis = axes[0, 0]
        axis.axvline(0, color="black", linewidth=1)
        gap = next((each.paper for each in table.findings if each.type == "difference"), None)
        if gap and table.bytes_per_token and table.baseline == "micro":
            near, far = (gap[i] * table.bytes_per_token for i in (2, 1))
            axis.axvspan(far, near, color="#DDDDDD", zorder=0)
            axis.text((near + far) / 2, len(arms) - 0.42, "paper", ha="center", fontsize=7.5)
        for y, arm in enumerate(reversed(arms)):
            found = table.comparisons.arms[arm.name]
            each, style = found.adjusted, _look(table, arm)
            seeds = list(found.per_seed.values())
            axis.plot(seeds, [y - 0.2] * len(seeds), "|", color="#666666", markersize=6)
            axis.errorbar(
                [each.value],
                [y],
                xerr=errors([(each.value, each.low, each.high)]),
                color=style.colour,
                marker=style.marker,
                capsize=3,
            )
        axis.set_yticks(range(len(arms)), [short(arm.name) for arm in reversed(arms)])
        axis.set_ylim(-0.6, len(arms) - 0.2)
        axis.set_xlabel(
            f"{table.primary}: difference to {short(table.baseline)}"
            + (" (nats, lower is better)" if unit_of(table.primary) else "")
        )
        axis.grid(False, axis="y")
        return _plot(
            "differences",
            f"Differences to {table.baseline}",
            "Bars: 95 % intervals that hold for all arms together; an arm without a bar has too "
            "few seeds. Strokes: each seed's own difference. An interval across 0 cannot tell."
            + (
                " Grey: the paper's global against micro, at an assumed 3 to 5 bytes a token."
                if gap and table.baseline == "micro"
                else ""
            ),
            figure,
        )


def over_balance_bsz(table: Table, _: Frame) -> Plot | None:
    """Nats and specialisation against the number of sequences balanced together."""
    arms = [
        arm
        for arm in table.arms
        if arm.science.get("scope") == "group"
        and arm.sequences
        and not {"data.homogeneity", "router.perturb", "balance.estimator"} & {*arm.science}
    ]
    weights = {arm.science.get(WEIGHT) for arm in arms}
    if len({arm.sequences for arm in arms}) < 3 or len(weights) > 1:
        return None
    arms.sort(key=lambda arm: arm.sequences or 0)
    x = [arm.sequences or 0 for arm in arms]
    shuffled = [arm for arm in table.arms if arm.science.get("scope") == "shuffled"]
    panels = [
        (NATS, PRIMARY),
        ("domain bits", "specialization/domain"),
        ("MaxVio in a micro-batch", "load/max_vio_micro"),
    ]
    with drawing(1, len(panels), (9.6, 3.2)) as (figure, axes):
        for axis, (label, metric) in zip(axes[0], panels, strict=True):
            for values, at, marker, name in (
                (arms, x, "o", "consecutive sequences"),
                (shuffled, [arm.sequences or 0 for arm in shuffled], "s", "shuffled"),
            ):
                ends = [_ends(arm.metrics.get(metric)) for arm in values]
                if values:
                    axis.errorbar(
                        at,
                        [each[0] for each in ends],
                        yerr=errors(ends),
                        marker=marker,
                        color="black" if marker == "o" else "#D55E00",
                        capsize=3,
                        label=name,
                        linestyle="-" if marker == "o" else "none",
                    )
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{each:.0f}" for each in x])
            axis.minorticks_off()
            axis.set_xlabel("sequences balanced together")
            axis.set_title(label)
        if shuffled:
            axes[0, 1].legend()
        seeds = _fewest_seeds(arms)
        return _plot(
            "balance_bsz",
            "Over the number of sequences that are balanced together",
            f"Means over seeds ({seeds} or more); bars: 95 % intervals of the mean, where there "
            "are three. Seeds move all arms alike, so bars that overlap do not mean that arms are "
            "equal: look at the differences.",
            figure,
        )


def curves(table: Table, frame: Frame) -> Plot | None:
    """Validation nats over the steps, less the baseline's of the same seed; and loss."""
    found = _curves(table, frame, [PRIMARY, "train/loss"])
    if found is None:
        return None
    with drawing(1, 2, (9.6, 3.6)) as (figure, axes):
        left, right = axes[0]
        for arm in table.arms:
            own = found.loc[found["arm"] == arm.name]
            _band(left, table, arm, _wide(own, PRIMARY))
            if arm.name != table.baseline:
                base = found.loc[found["arm"] == table.baseline]
                _bars(right, table, arm, _wide(own, PRIMARY) - _wide(base, PRIMARY))
        left.set_title(NATS)
        right.set_title(f"the same, less {short(table.baseline)} of the same seed")
        right.axhline(0, color="black", linewidth=1)
        for axis in (left, right):
            axis.set_xlabel("step")
        _zoom(left)
        _legend(figure, left)
        return _plot(
            "curves",
            "Validation loss on the way",
            "Means over seeds; bands and bars: 95 % intervals where there are three seeds, of one "
            "arm alone. On the right they are of paired differences, and stand side by side.",
            figure,
        )


def specialisation(table: Table, _: Frame) -> Plot | None:
    """Specialisation against load, a point an arm."""
    panels = [
        ("MaxVio in a micro-batch", "load/max_vio_micro"),
        ("MaxVio over the validation set", MAX_VIO),
    ]
    y = "specialization/domain"
    arms = [arm for arm in table.arms if y in arm.metrics]
    if len(arms) < 2:
        return None
    with drawing(1, 2, (9.6, 3.6)) as (figure, axes):
        for axis, (label, metric) in zip(axes[0], panels, strict=True):
            for arm in arms:
                if metric in arm.metrics:
                    _cross(axis, table, arm, metric, y)
            axis.set_xscale("log")
            _plain_ticks(axis.xaxis)
            axis.set_xlabel(label)
        for axis, scope in zip(axes[0], ("micro", "global"), strict=True):
            if scope in table.random:
                axis.axvline(table.random[scope][0], color="#666666", linewidth=1, linestyle=":")
                axis.annotate(
                    "random routing",
                    (table.random[scope][0], 1),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    va="top",
                    ha="right",
                    fontsize=7,
                    color="#444444",
                )
        axes[0, 0].set_ylabel("domain bits")
        _legend(figure, axes[0, 0])
        return _plot(
            "specialisation",
            "Specialisation against load",
            "To the left: more even load; up: experts tell more of domains. Bars: 95 % intervals "
            "of the means over seeds, where there are three.",
            figure,
        )


def weights(table: Table, _: Frame) -> Plot | None:
    """The frontier: nats against MaxVio, each scope a line through its weights."""
    scopes = frontier(table)
    if not scopes:
        return None
    with drawing(size=(6.8, 4.2)) as (figure, axes):
        axis = axes[0, 0]
        for place, scope in enumerate(scopes):
            style = look(place)
            points = [
                (arm.metrics[MAX_VIO].mean or 0, arm.metrics[PRIMARY].mean or 0)
                for arm in scope.arms
            ]
            axis.plot(
                *zip(*points, strict=True),
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                label=short(scope.name),
            )
            for arm, point in zip(scope.arms, points, strict=True):
                axis.annotate(
                    f"{arm.science[WEIGHT]:g}",
                    point,
                    textcoords="offset points",
                    xytext=(5, 4),
                    fontsize=7,
                    color=style.colour,
                )
        axis.set_xscale("log")
        _plain_ticks(axis.xaxis)
        axis.set_xlabel("MaxVio over the validation set (left: more even)")
        axis.set_ylabel(NATS)
        if scopes[0].at:
            axis.axvline(scopes[0].at, color="#666666", linewidth=1, linestyle=":")
        axis.legend()
        return _plot(
            "weights",
            "Quality against balance, over the weight of the balance loss",
            "Numbers: loss.balance. Lower and further left is better; a scope whose line lies "
            "below another's is better at every balance. Dotted: the MaxVio at which the table "
            "compares scopes. Means over seeds, without intervals: the table has those.",
            figure,
        )


def domains(table: Table, frame: Frame) -> Plot | None:
    """Which share of each domain's tokens goes to each expert, an arm a heatmap."""
    found = [
        (arm, share)
        for arm in _unlike(table.arms)[:MOST_HEATMAPS]
        if (share := _shares(arm, frame)) is not None
    ]
    if not found:
        return None
    names, layer = found[0][1][1], found[0][1][2]
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    experts = found[0][1][0].shape[1]
    size = (3.4 * columns + 1.2, rows * (0.8 + 0.19 * len(names)))
    with drawing(rows, columns, size) as (figure, axes):
        every = np.concatenate([share.ravel() for _, (share, _, _) in found])
        top = float(np.quantile(every, 0.98))  # or one collapsed arm would darken all others
        image = None
        for axis in axes.flat[len(found) :]:
            axis.axis("off")
        for axis, (arm, (share, _, _)) in zip(axes.flat, found, strict=False):
            image = axis.imshow(share, cmap="cividis", vmin=0, vmax=top, aspect="auto")
            axis.set_title(short(arm.name))
            axis.grid(False)
            axis.set_xticks([0, experts - 1], ["1", str(experts)])
            first = axis in axes[:, 0]
            axis.set_yticks(range(len(names)), [short(n) if first else "" for n in names])
            axis.tick_params(labelsize=7.5, length=0)
        figure.colorbar(
            image, ax=axes, label="share of the domain's choices", shrink=0.8, extend="max"
        )
        seed = found[0][0].seeds[0]
        more = len(table.arms) - len(found)
        return _plot(
            "domains",
            "Which experts a domain uses",
            f"Rows: domains. Columns: experts of router {layer + 1}, the middle one, ordered by "
            f"the domain that uses them most; seed {seed}. Even use is {1 / experts:.3f} "
            "everywhere; bright spots are experts that a domain has made its own."
            + (f" {more} more arms are not shown." if more > 0 else ""),
            figure,
        )


def _unlike(arms: Sequence[Arm]) -> list[Arm]:
    """The arms in order, but first one of each that differ in weight alone: of the baseline's."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(but_for_weight(arm), []).append(arm)
    wanted = arms[0].science.get(WEIGHT)
    first = [
        next((arm for arm in each if arm.science.get(WEIGHT) == wanted), each[0])
        for each in groups.values()
    ]
    return [*first, *(arm for arm in arms if arm not in first)]


def cost(table: Table, _: Frame) -> Plot | None:
    """Nats against what the load would cost over ranks."""
    metric = "ep/slowdown"
    arms = [arm for arm in table.arms if metric in arm.metrics and PRIMARY in arm.metrics]
    if len(arms) < 2:
        return None
    with drawing(size=(6.4, 4.0)) as (figure, axes):
        axis = axes[0, 0]
        for arm in arms:
            _cross(axis, table, arm, metric, PRIMARY)
        axis.set_xlabel("virtual slowdown: largest rank's load over the mean (1: none)")
        axis.set_ylabel(NATS)
        _legend(figure, axis)
        return _plot(
            "cost",
            "Quality against virtual cost",
            "The slowdown that expert layers would have if micro-batches were dispatched together "
            "over ranks. Lower and further left is better. Bars: 95 % intervals of the means over "
            "seeds, where there are three.",
            figure,
        )


def switches(table: Table, frame: Frame) -> Plot | None:
    """How the balance loss and specialisation answer to a change of scope."""
    starts = {arm.name: share_before_global(arm.science) for arm in table.arms}
    arms = [arm for arm in table.arms if starts[arm.name] is not None or "terms" in arm.science]
    if not any("terms" in arm.science for arm in arms) or len(arms) < 2:
        return None
    panels = [
        ("balance loss in a micro-batch", "train/balance_loss_micro"),
        ("domain bits", "specialization/domain"),
    ]
    found = _curves(table, frame, [metric for _, metric in panels])
    if found is None:
        return None
    with drawing(1, 2, (9.6, 3.6)) as (figure, axes):
        for axis, (label, metric) in zip(axes[0], panels, strict=True):
            for arm in arms:
                wide = _wide(found.loc[found["arm"] == arm.name], metric)
                _band(axis, table, arm, _thinned(wide))
            axis.set_title(label)
            axis.set_xlabel("step")
        for arm in arms:
            for term in arm.science.get("terms", ()):
                for axis in axes[0]:
                    if term.get("start"):
                        axis.axvline(
                            term["start"],
                            color=_look(table, arm).colour,
                            linewidth=0.8,
                            linestyle=":",
                        )
        _legend(figure, axes[0, 0])
        return _plot(
            "switches",
            "When the scope changes",
            "Dotted: the step of a change, in the colour of its arm. Until then an arm equals its "
            "parent bit for bit. Means over seeds; bands: 95 % intervals where there are three.",
            figure,
        )


_PLOTS: tuple[Callable[[Table, Frame], Plot | None], ...] = (
    differences,
    over_balance_bsz,
    weights,
    specialisation,
    domains,
    cost,
    switches,
    curves,
)


# Pieces


def _plot(name: str, title: str, caption: str, figure: Any) -> Plot:
    files = encoded(figure)
    return Plot(name, title, caption, files["svg"], files["png"])


def _look(table: Table, arm: Arm) -> Any:
    return look(next(i for i, each in enumerate(table.arms) if each.name == arm.name))


def _ends(each: Described | None) -> tuple[float, float | None, float | None]:
    if each is None or each.mean is None:
        return math.nan, None, None
    return each.mean, each.low, each.high


def _cross(axis: Any, table: Table, arm: Arm, x: str, y: str) -> None:
    style = _look(table, arm)
    across, up = _ends(arm.metrics.get(x)), _ends(arm.metrics.get(y))
    axis.errorbar(
        [across[0]],
        [up[0]],
        xerr=errors([across]),
        yerr=errors([up]),
        color=style.colour,
        marker=style.marker,
        linestyle="none",
        elinewidth=0.8,
        label=short(arm.name),
    )


def _fewest_seeds(arms: Sequence[Arm]) -> int:
    return min(len(arm.seeds) for arm in arms)


def _curves(table: Table, frame: Frame, metrics: Sequence[str]) -> Any:
    found: Any = frame.curves(metrics)
    if "table" not in found or any(name not in found for name in metrics):
        return None
    own = found.loc[found["table"] == table.index]
    return own if own["step"].nunique() > 2 else None


def _wide(curves: Any, metric: str) -> Any:
    """A data frame of a row a step and a column a seed."""
    known = curves.loc[curves[metric].notna(), ["step", "seed", metric]]
    return known.pivot_table(index="step", columns="seed", values=metric)


def _thinned(wide: Any) -> Any:
    """Means over stretches of as many steps, so that a noisy curve can be seen."""
    stretch = np.ceil(wide.index.to_numpy(float) * SMOOTHED / max(wide.index.max(), 1))
    thinned = wide.groupby(stretch).mean()
    thinned.index = wide.index.to_series().groupby(stretch).mean().to_numpy()
    return thinned


def _band(axis: Any, table: Table, arm: Arm, wide: Any) -> None:
    from moebench.report.statistics import mean_interval

    style = _look(table, arm)
    values = wide.to_numpy(float)
    rows = [row[~np.isnan(row)] for row in values]
    found = [(x, mean_interval(row)) for x, row in zip(wide.index, rows, strict=True) if len(row)]
    if not found:
        return
    x = [step for step, _ in found]
    axis.plot(
        x,
        [each.value for _, each in found],
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markevery=max(1, len(x) // 7),
        markersize=4.5,
        label=short(arm.name),
    )
    if len(table.arms) <= 6 and all(each.low is not None for _, each in found[1:]):
        low = [each.value if each.low is None else each.low for _, each in found]
        high = [each.value if each.high is None else each.high for _, each in found]
        axis.fill_between(x, low, high, color=style.colour, alpha=0.12, linewidth=0)


def _bars(axis: Any, table: Table, arm: Arm, wide: Any) -> None:
    """A curve with bars, moved aside by the arm's place so that those of all arms can be seen."""
    from moebench.report.statistics import mean_interval

    style, place = _look(table, arm), [each.name for each in table.arms].index(arm.name)
    rows = [(x, row[~np.isnan(row)]) for x, row in zip(wide.index, wide.to_numpy(), strict=True)]
    found = [(x, mean_interval(row)) for x, row in rows if len(row)]
    if not found:
        return
    gap = 0.6 / max(1, len(found) - 1) / len(table.arms)
    apart = float(wide.index.max()) * min(gap, 0.012)
    axis.errorbar(
        [x + apart * (place - len(table.arms) / 2) for x, _ in found],
        [each.value for _, each in found],
        yerr=errors([(each.value, each.low, each.high) for _, each in found]),
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=4.5,
        linewidth=1,
        elinewidth=0.8,
    )


def _zoom(axis: Any) -> None:
    """The last two thirds of the steps fill the height: the fall at the start says nothing."""
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) > 2]
    if not lines:
        return
    last = max(float(np.max(line.get_xdata())) for line in lines)
    late = np.concatenate(
        [line.get_ydata()[np.asarray(line.get_xdata()) >= last / 3] for line in lines]
    )
    low, high = float(np.nanmin(late)), float(np.nanmax(late))
    if high > low:
        axis.set_ylim(low - 0.08 * (high - low), high + 0.12 * (high - low))


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def _shares(arm: Arm, frame: Frame) -> tuple[np.ndarray, list[str], int] | None:
    """Of the arm's first seed at its last evaluation: [domains, experts], domains and router."""
    row = next(row for row in frame.rows() if row["run"] == arm.runs[arm.seeds[0]])
    record = Record(row["path"])
    steps = record.routing_steps()
    if not steps:
        return None
    counts = record.routing(steps[-1]).get("counts")
    if counts is None or counts.ndim != 3 or counts.shape[1] != len(row["domains"]):
        return None
    layer = counts.shape[0] // 2
    share = counts[layer] / np.maximum(counts[layer].sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-share.max(axis=0), share.argmax(axis=0)))
    return share[:, order], row["domains"], layer
