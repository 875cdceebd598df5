"""Plots of one table: differences, groups, load, cost, and quality against balance.

A plot function returns None where the table has nothing for it. Arms keep their colour, marker and
line style over all plots (`style.py`). Bars and bands are 95 % intervals, over seeds.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from moebench.catalogue import find
from moebench.plans import PRIMARY
from moebench.report.draw.curves import curves, switches
from moebench.report.draw.headroom import over_training
from moebench.report.draw.heatmaps import domains
from moebench.report.draw.style import (
    NATS,
    Plot,
    drawing,
    errors,
    legend,
    plot,
    short,
    style,
    style_of,
)
from moebench.report.infer.arms import CONTROLS, Arm, Table
from moebench.report.infer.frontier import MAX_VIO, WEIGHT, frontier
from moebench.report.infer.metrics import ArmMetric
from moebench.report.paper.findings import paper_gaps
from moebench.report.read.frame import Frame


def plots(table: Table, frame: Frame) -> list[Plot]:
    """All that the table has something for, the most important first."""
    made = [make(table, frame) for make in _PLOTS]
    return [plot for plot in made if plot is not None]


def differences(table: Table, _: Frame) -> Plot | None:
    """Forest plot of the primary endpoint."""
    arms = [arm for arm in table.arms if arm.name in table.comparisons.arms]
    if not arms:
        return None
    with drawing(size=(6.4, 1.3 + 0.34 * len(arms))) as (figure, axes):
        axis = axes[0, 0]
        axis.axvline(0, color="black", linewidth=1)
        gaps = paper_gaps(table.bytes_per_token) if table.baseline == "micro" else None
        if gaps:
            near, far = -min(gaps), -max(gaps)
            axis.axvspan(far, near, color="#DDDDDD", zorder=0)
            axis.text((near + far) / 2, len(arms) - 0.42, "paper", ha="center", fontsize=7.5)
        for y, arm in enumerate(reversed(arms)):
            comparison, style = table.comparisons.arms[arm.name], style_of(table, arm)
            difference, per_seed = comparison.adjusted, list(comparison.per_seed.values())
            axis.plot(per_seed, [y - 0.2] * len(per_seed), "|", color="#666666", markersize=6)
            axis.errorbar(
                [difference.value],
                [y],
                xerr=errors([(difference.value, difference.low, difference.high)]),
                color=style.colour,
                marker=style.marker,
                capsize=3,
            )
        axis.set_yticks(range(len(arms)), [short(arm.name) for arm in reversed(arms)])
        axis.set_ylim(-0.6, len(arms) - 0.2)
        axis.set_xlabel(f"{table.primary}: difference to {short(table.baseline)}{_better(table)}")
        axis.grid(False, axis="y")
        return plot(
            "differences",
            f"Differences to {table.baseline}",
            "Bars: 95 % intervals that hold for all arms together; an arm without a bar has too "
            "few seeds. Strokes: the difference of each seed. An interval that includes 0 resolves "
            "no difference."
            + (
                " Grey: the paper's global against micro, at an assumed 3 to 5 bytes a token."
                if gaps
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
        and not {*CONTROLS, "balance.estimator"} & {*arm.science}
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
                        [value for value, _, _ in ends],
                        yerr=errors(ends),
                        marker=marker,
                        color="black" if marker == "o" else "#D55E00",
                        capsize=3,
                        label=name,
                        linestyle="-" if marker == "o" else "none",
                    )
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{size:.0f}" for size in x])
            axis.minorticks_off()
            axis.set_xlabel("sequences balanced together")
            axis.set_title(label)
        if shuffled:
            axes[0, 1].legend()
        seeds = _fewest_seeds(arms)
        return plot(
            "balance_bsz",
            "Over the number of sequences that are balanced together",
            f"Means over seeds ({seeds} or more); bars: 95 % intervals of the mean, where there "
            "are three. Seeds move all arms alike, so bars that overlap do not mean that arms are "
            "equal: read the differences.",
            figure,
        )


def specialisation(table: Table, _: Frame) -> Plot | None:
    """Specialisation against load, one point an arm."""
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
        legend(figure, axes[0, 0])
        return plot(
            "specialisation",
            "Specialisation against load",
            "To the left: more even load; up: experts carry more information about domains. Bars: "
            "95 % intervals of the means over seeds, where there are three.",
            figure,
        )


def weights(table: Table, _: Frame) -> Plot | None:
    """The frontier: nats against MaxVio, a line a scope through its weights."""
    curves = frontier(table)
    if not curves:
        return None
    with drawing(size=(6.8, 4.2)) as (figure, axes):
        axis = axes[0, 0]
        for place, curve in enumerate(curves):
            line = style(place)
            points = [
                (arm.metrics[MAX_VIO].mean or 0, arm.metrics[PRIMARY].mean or 0)
                for arm in curve.arms
            ]
            axis.plot(
                *zip(*points, strict=True),
                color=line.colour,
                marker=line.marker,
                linestyle=line.line,
                label=short(curve.name),
            )
            for arm, point in zip(curve.arms, points, strict=True):
                axis.annotate(
                    f"{arm.science[WEIGHT]:g}",
                    point,
                    textcoords="offset points",
                    xytext=(5, 4),
                    fontsize=7,
                    color=line.colour,
                )
        axis.set_xscale("log")
        _plain_ticks(axis.xaxis)
        axis.set_xlabel("MaxVio over the validation set (left: more even)")
        axis.set_ylabel(NATS)
        if curves[0].at:
            axis.axvline(curves[0].at, color="#666666", linewidth=1, linestyle=":")
        axis.legend()
        return plot(
            "weights",
            "Quality against balance, over the weight of the balance loss",
            "Numbers: loss.balance. Lower and further left is better; a scope whose line lies "
            "below another's is better at every balance. Dotted: the MaxVio at which the table "
            "compares scopes. Means over seeds, without intervals: the table has those.",
            figure,
        )


def cost(table: Table, _: Frame) -> Plot | None:
    """Nats against the slowdown that the load would cause over ranks."""
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
        legend(figure, axis)
        return plot(
            "cost",
            "Quality against virtual cost",
            "The slowdown that expert layers would have if micro-batches were dispatched together "
            "over ranks. Lower and further left is better. Bars: 95 % intervals of the means over "
            "seeds, where there are three.",
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
    over_training,
    curves,
)


# Pieces


def _ends(metric: ArmMetric | None) -> tuple[float, float | None, float | None]:
    if metric is None or metric.mean is None:
        return math.nan, None, None
    return metric.mean, metric.low, metric.high


def _cross(axis: Any, table: Table, arm: Arm, x: str, y: str) -> None:
    style = style_of(table, arm)
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


def _better(table: Table) -> str:
    """The unit of the primary endpoint, and which values are better."""
    metric = find(table.primary)
    if metric is None:
        return ""
    better = f"{metric.direction} is better" if metric.direction != "neither" else ""
    text = ", ".join(filter(None, (metric.unit, better)))
    return f" ({text})" if text else ""


def _fewest_seeds(arms: Sequence[Arm]) -> int:
    return min(len(arm.seeds) for arm in arms)


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
