"""Heatmaps of the experts that domains use, one an arm."""

from collections.abc import Sequence

import numpy as np

from moebench.report.draw.chart import Panel, Plot
from moebench.report.draw.style import Spec, rounded
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.frontier import WEIGHT, but_for_weight
from moebench.report.read.frame import Frame
from moebench.report.read.routing import last_counts

MOST_HEATMAPS = 6
MOST_TIMES = 3.0  # of the colour scale: 2^3 times even and above look alike
ROW = 17  # height of a domain, in pixels


def domains(table: Table, frame: Frame) -> Plot | None:
    """The share of a domain's choices that goes to an expert, as a multiple of even."""
    chosen = _unlike(table.arms)[:MOST_HEATMAPS]
    heatmaps = [(arm, found) for arm in chosen if (found := _shares(arm, frame)) is not None]
    if not heatmaps:
        return None
    first_arm, (shares, _, layer) = heatmaps[0]
    more = len(table.arms) - len(heatmaps)
    return Plot(
        "domains",
        "Which experts a domain uses",
        f"Rows: domains. Columns: experts of router {layer + 1}, the middle one, ordered by "
        f"the domain that uses them most; seed {first_arm.seeds[0]}. White is even use, "
        f"{1 / shares.shape[1]:.3f} of the domain's choices; orange is more, up to 8 times and "
        "above, and blue less: an orange spot in a blue column is an expert that one domain has "
        "made its own." + (f" {more} more arms are not shown." if more > 0 else ""),
        tuple(
            Panel(
                f"arm-{place}",
                _heatmap(arm.name, *found[:2]),
                zooms="",
                legend=place == 0,
                height=ROW * len(found[1]),
            )
            for place, (arm, found) in enumerate(heatmaps)
        ),
        arms=False,
    )


def _heatmap(title: str, shares: np.ndarray, names: Sequence[str]) -> Spec:
    """One arm's shares [domains, experts]."""
    experts = shares.shape[1]
    times = np.log2(np.maximum(shares * experts, 2.0 ** -(2 * MOST_TIMES)))
    data = [
        {
            "domain": names[row],
            "expert": column + 1,
            "share": rounded(float(shares[row, column])),
            "times": rounded(float(shares[row, column] * experts)),
            "log": rounded(float(np.clip(times[row, column], -MOST_TIMES, MOST_TIMES))),
        }
        for row in range(shares.shape[0])
        for column in range(experts)
    ]
    axis = {"labelAngle": 0, "values": [1, experts], "grid": False, "ticks": False}
    tips = ("domain", "expert"), ("share", "share of the domain's choices"), ("times", "times even")
    scale = {"domain": [-MOST_TIMES, MOST_TIMES], "domainMid": 0, "range": "diverging"}
    legend = {
        "title": "share of the domain's choices, as a multiple of even",
        "titleLimit": 300,
        "orient": "bottom",
        "direction": "horizontal",
        "values": [-3, -2, -1, 0, 1, 2, 3],
        "labelExpr": "datum.value < 0 ? '1/' + pow(2, -datum.value) : pow(2, datum.value)",
        "gradientLength": 180,
        "titleOrient": "top",
    }
    return {
        "title": title,
        "data": {"values": data},
        "layer": [
            {
                "mark": {"type": "rect"},
                "encoding": {
                    "x": {"field": "expert", "type": "ordinal", "title": "expert", "axis": axis},
                    "y": {
                        "field": "domain",
                        "type": "nominal",
                        "sort": None,
                        "title": None,
                        "axis": {"grid": False, "ticks": False, "domain": False},
                    },
                    "color": {"field": "log", "type": "quantitative", "scale": scale}
                    | {"legend": legend},
                    "tooltip": [
                        {"field": "domain", "type": "nominal"},
                        {"field": "expert", "type": "ordinal"},
                        *(
                            {"field": f, "title": t, "type": "quantitative", "format": ".3~g"}
                            for f, t in tips[1:]
                        ),
                    ],
                },
            }
        ],
    }


def _unlike(arms: Sequence[Arm]) -> list[Arm]:
    """The arms in order, but first one of those that differ in weight alone.

    That one has the baseline's weight if there is such an arm.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(but_for_weight(arm.science), []).append(arm)
    wanted = arms[0].science.get(WEIGHT)
    first = [
        next((arm for arm in alike if arm.science.get(WEIGHT) == wanted), alike[0])
        for alike in groups.values()
    ]
    return [*first, *(arm for arm in arms if arm not in first)]


def _shares(arm: Arm, frame: Frame) -> tuple[np.ndarray, list[str], int] | None:
    """Shares [domains, experts], domains and layer, of the arm's first seed at its last step."""
    row = next(row for row in frame.rows() if row["run"] == arm.runs[arm.seeds[0]])
    counts = last_counts(row["path"], len(row["domains"]))
    if counts is None:
        return None
    layer = counts.shape[0] // 2
    shares = counts[layer] / np.maximum(counts[layer].sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
    return shares[:, order], row["domains"], layer
