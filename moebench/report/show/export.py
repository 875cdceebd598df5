"""The report for programs: an object for JSON, a line an arm and metric for CSV and Parquet."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moebench.disk import why_not_written, write_bytes
from moebench.errors import RecordError
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.decisions import Decision
from moebench.report.infer.metrics import ArmMetric
from moebench.report.infer.statistics import Comparison
from moebench.report.infer.stopping import Rule
from moebench.report.paper.verdicts import Verdict
from moebench.report.read.frame import Problem
from moebench.report.show import gains
from moebench.report.show.answers import answers

SCHEMA_VERSION = 1
COLUMNS = (
    *("table", "arm", "baseline", "metric", "n", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "p"),
)
FORMULA_STARTS = ("=", "+", "-", "@")


def as_dict(
    tables: Sequence[Table],
    verdicts: Sequence[Sequence[Verdict]],
    unfinished: Sequence[Any],
    problems: Sequence[Problem],
    metrics: Sequence[str] = (),
) -> dict:
    """What `moebench report --json` prints: numbers or null, in the units of each metric.

    `rows` holds one object an arm. The baseline's differences are null. The primary endpoint's
    carry `per_seed`, `paired` (Student's t alone) and `left_pool` beside the interval, which is
    adjusted for the number of arms; and `p`, on which the verdict rests, or null with the reason in
    `withheld`. The differences of all others are paired, with Student's t; those of the secondary
    endpoints carry `p` and `withheld`, too.

    Args:
        tables: of the report.
        verdicts: of each table.
        unfinished: runs, as named tuples.
        problems: what was left out.
        metrics: names of those to give; all if it is empty.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "rows": [
            _row(i, table, arm, metrics) for i, table in enumerate(tables) for arm in table.arms
        ],
        "findings": [
            _finding(i, verdict) for i, of_table in enumerate(verdicts) for verdict in of_table
        ],
        "tables": [_about(table) for table in tables],
        "unfinished": [run._asdict() for run in unfinished],
        "problems": [problem._asdict() for problem in problems],
    }


def as_csv(tables: Sequence[Table], metrics: Sequence[str] = ()) -> str:
    """A line an arm and metric under a header; a cell is empty where there is no value.

    Text that a spreadsheet would run as a formula is given an apostrophe in front; numbers are not.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in _lines(tables, metrics):
        writer.writerow([_guarded(cell) if isinstance(cell, str) else cell for cell in line])
    return file.getvalue()


def as_parquet(tables: Sequence[Table], metrics: Sequence[str] = ()) -> bytes:
    """The rows of the CSV, typed; text as it is, since nothing runs it as a formula."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, text = dict.fromkeys(("table", "n"), pa.int64()), ("arm", "baseline", "metric")
    kinds = whole | dict.fromkeys(text, pa.string())
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in COLUMNS])
    rows = [dict(zip(COLUMNS, line, strict=True)) for line in _lines(tables, metrics)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def _lines(tables: Sequence[Table], metrics: Sequence[str]) -> Iterable[list[Any]]:
    for i, table in enumerate(tables):
        for arm in table.arms:
            for name, metric in _wanted(arm, metrics):
                yield [
                    *(i, arm.name, table.baseline, name),
                    *(metric.n, metric.mean, metric.low, metric.high),
                    *(metric.difference, metric.difference_low, metric.difference_high, metric.p),
                ]


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _wanted(arm: Arm, names: Sequence[str]) -> list[tuple[str, ArmMetric]]:
    """The metrics of some names, or all, by name."""
    return [item for item in sorted(arm.metrics.items()) if not names or item[0] in names]


def _row(index: int, table: Table, arm: Arm, wanted: Sequence[str]) -> dict[str, Any]:
    metrics = {name: _metric(metric) for name, metric in _wanted(arm, wanted)}
    if arm.name in table.comparisons.arms and table.primary in metrics:
        tested = _tested(table.comparisons.arms[arm.name], table.decisions.get(arm.name))
        metrics[table.primary] |= {"p": arm.metrics[table.primary].p, **tested}
    for name, decisions in table.secondary_decisions.items():
        decision = decisions.get(arm.name)
        if decision is not None and name in metrics:
            metrics[name] |= {"p": decision.p, "withheld": decision.withheld}
    return {
        "arm": arm.name,
        "n": len(arm.seeds),
        "seeds": list(arm.seeds),
        "group": {"sequences": _whole(arm.sequences), "tokens": _whole(arm.group_tokens)},
        "table": index,
        "baseline": table.baseline,
        "metrics": metrics,
        "unfinished": arm.unfinished,
        "cost": arm.cost and arm.cost._asdict(),
        "tokens_saved": gains.as_dict(
            table.gains.get(arm.name), table.tokens[1] if table.tokens else None
        ),
    }


def _finding(index: int, verdict: Verdict) -> dict[str, Any]:
    """Sizes in nats a `unit`; `paper` at 4, 3 and 5 bytes a token, which are assumed."""
    here = verdict.here
    return {
        "table": index,
        **{key: getattr(verdict, key) for key in ("metric", "claim", "source", "type")},
        **{key: getattr(verdict, key) for key in ("verdict", "reason")},
        "arms": list(verdict.arms),
        "unit": verdict.unit,
        "here": {"value": here.value, "low": here.low, "high": here.high},
        "paper": verdict.paper and list(verdict.paper),
        "p": verdict.p,
        "level": verdict.level,
        "treatment": verdict.treatment,
        "resolved": verdict.resolved,
        "seeds": verdict.seeds,
    }


def _metric(metric: ArmMetric) -> dict[str, Any]:
    keys = ("n", "mean", "low", "high", "difference", "difference_low", "difference_high")
    return {key: getattr(metric, key) for key in keys}


def _tested(comparison: Comparison, decision: Decision | None) -> dict[str, Any]:
    paired = comparison.paired
    return {
        "withheld": decision.withheld if decision else "",
        "treatment": decision and decision.treatment,
        "paired": paired and {"low": paired.low, "high": paired.high},
        "per_seed": {str(seed): value for seed, value in comparison.per_seed.items()},
        "left_pool": comparison.left_pool,
    }


def _about(table: Table) -> dict[str, Any]:
    return {
        "differs": table.differs,
        "answers": [answer._asdict() for answer in answers(table)],
        "baseline": table.baseline,
        "primary": table.primary,
        "secondary": list(table.secondary),
        "control": list(table.control),
        "order": list(table.order),
        "too_early": table.too_early,
        "level": table.level,
        "rule": table.rule and _rule(table.rule),
        "registered": table.registered and table.registered._asdict(),
        "unpaired": list(table.unpaired),
        "step": table.step,
        "interim": table.interim and asdict(table.interim),
        "comparisons": table.comparisons.family,
        "sd": table.comparisons.sd,
        "df": table.comparisons.df,
        "resolved": table.comparisons.resolved,
        "random_max_vio": {scope: list(ends) for scope, ends in table.random.items()},
        "tokens": _whole(table.tokens[1]) if table.tokens else None,
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "look": rule.look._asdict(),
        **{key: getattr(rule, key) for key in ("margin", "void", "outcome", "ended")},
    }


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)


def write(path: Path, data: bytes) -> None:
    """Write a file, and its folder if need be; RecordError if that cannot be done."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise RecordError(
            f"{path}: cannot be written ({why_not_written(path, error)}); name another place"
        ) from None
