"""The paper's findings in grids and in words: what the runs say of them."""

from collections.abc import Sequence

from moebench.plans import PRIMARY
from moebench.report.paper.findings import PAPER, findings
from moebench.report.paper.overlap import Overlap
from moebench.report.paper.verdicts import Verdict
from moebench.report.show.blocks import Block, Cell, Grid, Sentences
from moebench.report.show.numbers import as_percent, estimate_cell, four_decimals, p_value


def blocks(verdicts: Sequence[Verdict], overlaps: Sequence[Overlap]) -> list[Block]:
    """The paper's findings beside these runs, where they can be compared."""
    return [
        *_in_nats([verdict for verdict in verdicts if verdict.metric == PRIMARY]),
        *_on_routing([verdict for verdict in verdicts if verdict.metric != PRIMARY]),
        *_described(overlaps),
    ]


def _on_routing(verdicts: Sequence[Verdict]) -> list[Grid]:
    if not verdicts:
        return []
    rows = [
        [
            (verdict.claim, _about(verdict)),
            (verdict.verdict, p_value(verdict.p)),
            estimate_cell(verdict.here),
        ]
        for verdict in verdicts
    ]
    return [
        Grid(
            title=f"Findings of {PAPER} on load and routing",
            caption=f"Here: a difference of the metric, with its own {_sure(verdicts)} interval "
            "(paired t); of a ranking, its weakest step. p: adjusted, as that of the secondary "
            "endpoints. The paper gives no figures.",
            headers=["finding", "verdict", "here"],
            rows=rows,
        )
    ]


def _sure(verdicts: Sequence[Verdict]) -> str:
    """How sure the intervals of a table are, as in "95 %"."""
    return as_percent(1 - verdicts[0].level)


def _about(verdict: Verdict) -> str:
    unit = f" ({verdict.unit})" * bool(verdict.unit)
    source = verdict.source.partition(", ")[2]
    return f"{verdict.metric}{unit}, {_compared(verdict)}; {source}"


def _in_nats(verdicts: Sequence[Verdict]) -> list[Grid]:
    if not verdicts:
        return []
    rows = [
        [
            (verdict.claim, f"{_compared(verdict)}; {verdict.source.partition(', ')[2]}"),
            (verdict.verdict, p_value(verdict.p)),
            estimate_cell(verdict.here),
            _paper(verdict),
            ("-" if verdict.resolved is None else f"{verdict.resolved:.4f}", ""),
            ("-" if verdict.seeds is None else f"{verdict.seeds:,}", ""),
        ]
        for verdict in verdicts
    ]
    return [
        Grid(
            title=f"Findings of {PAPER}, in nats a {verdicts[0].unit}",
            caption=f"Here: with its own {_sure(verdicts)} interval (paired t). p: adjusted. In "
            "the paper: its log ratio over an assumed 4 bytes a token (5 to 3). Resolves: half of "
            "the interval; smaller sizes these seeds cannot tell from 0. Seeds: about how many "
            "show the paper's size, or equality within a quarter of its gap, in four of five "
            "studies.",
            headers=["finding", "verdict", "here", "in the\npaper", "resolves", "seeds"],
            rows=rows,
        )
    ]


def _described(overlaps: Sequence[Overlap]) -> list[Block]:
    """Which domains share their experts; nothing is tested."""
    if not overlaps:
        return []
    finding = findings()[overlaps[0].finding]
    text = [
        f"{found.arm}: {' and '.join(found.most)} share most of their experts "
        f"({found.most_share:.2f}), {' and '.join(found.least)} least ({found.least_share:.2f})."
        for found in overlaps
    ]
    text.append(
        "1: two domains use every expert alike; 0: they have none in common. Sums over experts of "
        "the smaller of two domains' shares, means over layers and seeds; nothing here is tested. "
        f"The paper ({finding['source']}): {finding['claim']}"
    )
    return [Sentences("Which domains share experts", text)]


def _compared(verdict: Verdict) -> str:
    reason = verdict.reason
    if verdict.treatment is not None:
        reason += f"; MaxVio micro differs by {verdict.treatment:.1f} deviations"
    if verdict.type == "trend":
        return f"over {', '.join(verdict.arms)};{verdict.per}; {reason}"
    if verdict.type == "ranking":
        return f"{' above '.join(verdict.arms)}: {reason}"
    arm, against = verdict.arms
    return f"{arm} against {against}: {reason}"


def _paper(verdict: Verdict) -> Cell:
    if verdict.paper is None:
        return "-", ""
    middle, far, near = map(four_decimals, verdict.paper)
    return middle, f"{near} to {far}"
