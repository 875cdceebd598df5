"""Plots over the steps: validation loss, and what a change of scope does."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moebench.plans import PRIMARY
from moebench.report.draw.style import NATS, Plot, drawing, errors, legend, plot, short, style_of
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.statistics import Estimate, mean_interval
from moebench.report.paper.selectors import share_before_global
from moebench.report.read.frame import Frame

SMOOTHED = 12  # points of a loss curve


def curves(table: Table, frame: Frame) -> Plot | None:
    """Validation nats over the steps, and their difference to the baseline's of the same seed."""
    rows = rows_of(table, frame, [PRIMARY, "train/loss"])
    if rows is None:
        return None
    with drawing(1, 2, (9.6, 3.6)) as (figure, axes):
        left, right = axes[0]
        for arm in table.arms:
            nats = by_seed(rows, arm, PRIMARY)
            band(left, table, arm, nats)
            if arm.name != table.baseline:
                base = by_seed(rows, table.arm(table.baseline), PRIMARY)
                _bars(right, table, arm, nats - base)
        left.set_title(NATS)
        right.set_title(f"the same, less {short(table.baseline)} of the same seed")
        right.axhline(0, color="black", linewidth=1)
        for axis in (left, right):
            axis.set_xlabel("step")
        _zoom(left)
        legend(figure, left)
        return plot(
            "curves",
            "Validation loss on the way",
            "Means over seeds; bands and bars: 95 % intervals where there are three seeds, of one "
            "arm alone. On the right they are of paired differences, and stand side by side.",
            figure,
        )


def switches(table: Table, frame: Frame) -> Plot | None:
    """Balance loss and specialisation before and after a change of scope."""
    starts = {arm.name: share_before_global(arm.science) for arm in table.arms}
    arms = [arm for arm in table.arms if starts[arm.name] is not None or "terms" in arm.science]
    if not any("terms" in arm.science for arm in arms) or len(arms) < 2:
        return None
    panels = [
        ("balance loss in a micro-batch", "train/balance_loss_micro"),
        ("domain bits", "specialization/domain"),
    ]
    rows = rows_of(table, frame, [metric for _, metric in panels])
    if rows is None:
        return None
    with drawing(1, 2, (9.6, 3.6)) as (figure, axes):
        for axis, (label, metric) in zip(axes[0], panels, strict=True):
            for arm in arms:
                band(axis, table, arm, _thinned(by_seed(rows, arm, metric)))
            axis.set_title(label)
            axis.set_xlabel("step")
        for arm in arms:
            for term in arm.science.get("terms", ()):
                for axis in axes[0]:
                    if term.get("start"):
                        axis.axvline(
                            term["start"],
                            color=style_of(table, arm).colour,
                            linewidth=0.8,
                            linestyle=":",
                        )
        legend(figure, axes[0, 0])
        return plot(
            "switches",
            "When the scope changes",
            "Dotted: the step of a change, in the colour of its arm. Until then an arm equals its "
            "parent bit for bit. Means over seeds; bands: 95 % intervals where there are three.",
            figure,
        )


def rows_of(table: Table, frame: Frame, metrics: Sequence[str]) -> Any:
    """The rows of a table's runs; None where a metric or a third step is missing."""
    rows: Any = frame.curves(metrics)
    if "table" not in rows or any(name not in rows for name in metrics):
        return None
    rows = rows.loc[rows["table"] == table.index]
    return rows if rows["step"].nunique() > 2 else None


def by_seed(rows: Any, arm: Arm, metric: str) -> Any:
    """A metric of an arm as a data frame with a row a step and a column a seed."""
    known = rows.loc[(rows["arm"] == arm.name) & rows[metric].notna(), ["step", "seed", metric]]
    return known.pivot_table(index="step", columns="seed", values=metric)


def _thinned(by_seed: Any) -> Any:
    """Means over SMOOTHED stretches of equal length, which smooth a noisy curve."""
    stretch = np.ceil(by_seed.index.to_numpy(float) * SMOOTHED / max(by_seed.index.max(), 1))
    thinned = by_seed.groupby(stretch).mean()
    thinned.index = by_seed.index.to_series().groupby(stretch).mean().to_numpy()
    return thinned


def _means(by_seed: Any) -> list[tuple[float, Estimate]]:
    """Steps with the mean over the seeds that have a value there, and its interval."""
    rows = [
        (step, row[~np.isnan(row)])
        for step, row in zip(by_seed.index, by_seed.to_numpy(float), strict=True)
    ]
    return [(step, mean_interval(row)) for step, row in rows if len(row)]


def band(axis: Any, table: Table, arm: Arm, by_seed: Any) -> None:
    """A curve of means, with a band for the interval where few arms share the plot."""
    style, means = style_of(table, arm), _means(by_seed)
    if not means:
        return
    x = [step for step, _ in means]
    axis.plot(
        x,
        [mean.value for _, mean in means],
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markevery=max(1, len(x) // 7),
        markersize=4.5,
        label=short(arm.name),
    )
    if len(table.arms) <= 6 and all(mean.low is not None for _, mean in means[1:]):
        low = [mean.value if mean.low is None else mean.low for _, mean in means]
        high = [mean.value if mean.high is None else mean.high for _, mean in means]
        axis.fill_between(x, low, high, color=style.colour, alpha=0.12, linewidth=0)


def _bars(axis: Any, table: Table, arm: Arm, by_seed: Any) -> None:
    """A curve of means with error bars, shifted a little so that those of all arms are visible."""
    style, place = style_of(table, arm), [other.name for other in table.arms].index(arm.name)
    means = _means(by_seed)
    if not means:
        return
    gap = 0.6 / max(1, len(means) - 1) / len(table.arms)
    apart = float(by_seed.index.max()) * min(gap, 0.012)
    axis.errorbar(
        [step + apart * (place - len(table.arms) / 2) for step, _ in means],
        [mean.value for _, mean in means],
        yerr=errors([(mean.value, mean.low, mean.high) for _, mean in means]),
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=4.5,
        linewidth=1,
        elinewidth=0.8,
    )


def _zoom(axis: Any) -> None:
    """Fit the height to the last two thirds of the steps, as all arms fall alike at the start."""
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
