"""Plots of what happened on the way: loss over the steps, and the answer to a change of scope."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moebench.plans import PRIMARY
from moebench.report.draw.style import NATS, Plot, drawing, errors, legend, look_of, plot, short
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.statistics import Estimate, mean_interval
from moebench.report.paper.selectors import share_before_global
from moebench.report.read.frame import Frame

SMOOTHED = 12  # points of a loss curve


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
        legend(figure, left)
        return plot(
            "curves",
            "Validation loss on the way",
            "Means over seeds; bands and bars: 95 % intervals where there are three seeds, of one "
            "arm alone. On the right they are of paired differences, and stand side by side.",
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
                            color=look_of(table, arm).colour,
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


def _means(wide: Any) -> list[tuple[float, Estimate]]:
    """The mean over seeds of each step that has one, with its interval."""
    rows = [
        (x, row[~np.isnan(row)]) for x, row in zip(wide.index, wide.to_numpy(float), strict=True)
    ]
    return [(x, mean_interval(row)) for x, row in rows if len(row)]


def _band(axis: Any, table: Table, arm: Arm, wide: Any) -> None:
    style, found = look_of(table, arm), _means(wide)
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
    style, place = look_of(table, arm), [each.name for each in table.arms].index(arm.name)
    found = _means(wide)
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
