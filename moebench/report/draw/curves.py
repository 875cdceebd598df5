"""Plots over the steps: loss, load and specialisation, their differences, and changes of scope."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from moebench.plans import PRIMARY
from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.marks import Axis, curve
from moebench.report.draw.style import Spec, drawn, not_drawn
from moebench.report.infer.arms import Arm, Table
from moebench.report.paper.selectors import share_before_global
from moebench.report.read.frame import Frame

Curves = dict[str, Any]  # by arm, a frame with a row a step and a column a seed
NATS = "validation loss, nats a token"
BANDS = "Means over seeds; bands: 95 % intervals where there are three seeds and few arms."


class Followed(NamedTuple):
    """A metric that is drawn over the steps."""

    name: str
    metric: str
    title: str
    log: bool = False


FOLLOWED = (
    Followed("nats", PRIMARY, NATS, log=True),
    Followed("max-vio", "load/max_vio_micro", "MaxVio of micro-batches (0: even load)"),
    Followed("bits", "specialization/domain", "domain bits (0: experts ignore domains)"),
)


def curves(table: Table, frame: Frame) -> Plot | None:
    """Loss, load and specialisation over the steps."""
    values = over_steps(table, frame, [each.metric for each in FOLLOWED])
    panels = [
        curve(each.name, each.title, table, _trained(values[each.metric]), log=each.log)
        for each in FOLLOWED
    ]
    return _plot(
        "curves",
        "On the way",
        f"{BANDS} The loss of untrained models, at step 0, is left out.{not_drawn(table)}",
        panels,
    )


def differences(table: Table, frame: Frame) -> Plot | None:
    """The same, less the baseline's of the same seed."""
    values = over_steps(table, frame, [each.metric for each in FOLLOWED])
    panels = [
        curve(each.name, each.title, table, _trained(paired(values[each.metric], table)), zero=True)
        for each in FOLLOWED
    ]
    return _plot(
        "curve-differences",
        f"On the way, less {table.baseline} of the same seed",
        "Differences between runs of one seed, which saw the same text: "
        f"{BANDS[0].lower()}{BANDS[1:]} A band that includes 0 resolves no difference."
        f"{not_drawn(table)}",
        panels,
    )


def switches(table: Table, frame: Frame) -> Plot | None:
    """Balance loss and specialisation before and after a change of scope."""
    arms = [
        arm
        for arm in drawn(table)
        if share_before_global(arm.science) is not None or "terms" in arm.science
    ]
    if not any("terms" in arm.science for arm in arms) or len(arms) < 2:
        return None
    metrics = {
        "balance-loss": ("train/balance_loss_micro", "balance loss in a micro-batch (1: even)"),
        "bits": ("specialization/domain", "domain bits"),
    }
    values = over_steps(table, frame, [metric for metric, _ in metrics.values()])
    names = {arm.name for arm in arms}
    panels = [
        curve(
            name,
            title,
            table,
            {arm: of_arm for arm, of_arm in values[metric].items() if arm in names},
            more=[_changes(arms, table)],
        )
        for name, (metric, title) in metrics.items()
    ]
    return _plot(
        "switches",
        "When the scope changes",
        "Vertical lines: the step of a change, in the colour of its arm. Until then an arm equals "
        f"its parent bit for bit. {BANDS}",
        panels,
    )


def _changes(arms: Iterable[Arm], table: Table) -> Spec:
    """A vertical line at each step at which an arm changes its scope."""
    axis = Axis(table)
    starts = [
        {"arm": arm.name, axis.field: axis.values(arm.name, term["start"])}
        for arm in arms
        for term in arm.science.get("terms", ())
        if term.get("start")
    ]
    x = {"field": axis.field, "type": "quantitative"}
    color = {"field": "arm", "type": "nominal"}
    rule = {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.2}
    return {"data": {"values": starts}, "mark": rule, "encoding": {"x": x, "color": color}}


def over_steps(table: Table, frame: Frame, metrics: Sequence[str]) -> dict[str, Curves]:
    """The metrics of a table's arms over the steps, by metric and arm.

    Of a study that has not ended, the runs that still train are drawn as far as they have come.
    """
    rows: Any = frame.curves(metrics, unfinished=table.interim is not None)
    found: dict[str, Curves] = {metric: {} for metric in metrics}
    if "table" not in rows:
        return found
    names = [arm.name for arm in drawn(table)]
    rows = rows[(rows["table"] == table.index) & rows["arm"].isin(names)]
    for metric in metrics:
        if metric not in rows:
            continue
        known = rows[rows[metric].notna()].drop_duplicates(["arm", "step", "seed"], keep="last")
        wide = (
            known.set_index(["step", "arm", "seed"])[metric].unstack(["arm", "seed"]).sort_index()
        )
        there = set(wide.columns.get_level_values("arm"))
        for name in names:
            if name in there:
                found[metric][name] = wide[name].dropna(how="all")
    return found


def paired(values: Mapping[str, Any], table: Table) -> Curves:
    """Differences to the baseline's value at the same step in the same seed."""
    base = values.get(table.baseline)
    if base is None:
        return {}
    others = {arm: of_arm - base for arm, of_arm in values.items() if arm != table.baseline}
    return {arm: of_arm.dropna(how="all") for arm, of_arm in others.items()}


def _trained(values: Mapping[str, Any]) -> Curves:
    """Without step 0, whose untrained models are far from all that follows."""
    return {arm: of_arm[of_arm.index > 0] for arm, of_arm in values.items()}


def _plot(name: str, title: str, caption: str, panels: Iterable[Panel | None]) -> Plot | None:
    there = tuple(panel for panel in panels if panel is not None)
    return Plot(name, title, caption, there) if there else None
