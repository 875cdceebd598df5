"""The report for programs: one object for JSON, one line an arm and metric for CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from moebench.report.arms import Arm, Described, Table
from moebench.report.frame import Problem
from moebench.report.statistics import Comparison

SCHEMA_VERSION = 1
COLUMNS = (
    *("table", "arm", "baseline", "metric", "n", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "p"),
)
FORMULA_STARTS = ("=", "+", "-", "@")


def as_dict(
    tables: Sequence[Table], unfinished: Sequence[Any], problems: Sequence[Problem]
) -> dict:
    """What `moebench report --json` prints: numbers or null, in the units of each metric.

    `rows` holds one object an arm. The baseline's differences are null. The primary endpoint's
    carry `p`, `per_seed`, `paired` (Student's t alone) and `left_pool` beside the interval, which
    is adjusted for the number of arms; the differences of all others are paired, with Student's t.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "rows": [_row(i, table, arm) for i, table in enumerate(tables) for arm in table.arms],
        "tables": [_about(table) for table in tables],
        "unfinished": [each._asdict() for each in unfinished],
        "problems": [each._asdict() for each in problems],
    }


def as_csv(tables: Sequence[Table]) -> str:
    """Tidy, with a header line; empty where there is no value.

    Text that a spreadsheet would take for a formula starts with an apostrophe; numbers do not.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in _lines(tables):
        writer.writerow([_guarded(cell) if isinstance(cell, str) else cell for cell in line])
    return file.getvalue()


def _lines(tables: Sequence[Table]) -> Iterable[list[Any]]:
    for i, table in enumerate(tables):
        for arm in table.arms:
            for name, each in sorted(arm.metrics.items()):
                yield [
                    *(i, arm.name, table.baseline, name, each.n, each.mean, each.low, each.high),
                    *(each.difference, each.difference_low, each.difference_high, each.p),
                ]


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _row(index: int, table: Table, arm: Arm) -> dict[str, Any]:
    metrics = {name: _metric(each) for name, each in sorted(arm.metrics.items())}
    if arm.name in table.comparisons.arms:
        comparison = table.comparisons.arms[arm.name]
        metrics[table.primary] |= {"p": comparison.adjusted.p, **_tested(comparison)}
    return {
        "arm": arm.name,
        "n": len(arm.seeds),
        "seeds": list(arm.seeds),
        "group": {"sequences": _whole(arm.sequences), "tokens": _whole(arm.group_tokens)},
        "table": index,
        "baseline": table.baseline,
        "metrics": metrics,
    }


def _metric(each: Described) -> dict[str, Any]:
    return {
        "n": each.n,
        "mean": each.mean,
        "low": each.low,
        "high": each.high,
        "difference": each.difference,
        "difference_low": each.difference_low,
        "difference_high": each.difference_high,
    }


def _tested(comparison: Comparison) -> dict[str, Any]:
    paired = comparison.paired
    return {
        "paired": paired and {"low": paired.low, "high": paired.high, "p": paired.p},
        "per_seed": {str(seed): value for seed, value in comparison.per_seed.items()},
        "left_pool": comparison.left_pool,
    }


def _about(table: Table) -> dict[str, Any]:
    return {
        "differs": table.differs,
        "baseline": table.baseline,
        "primary": table.primary,
        "comparisons": table.comparisons.family,
        "sd": table.comparisons.sd,
        "df": table.comparisons.df,
        "resolved": table.comparisons.resolved,
        "random_max_vio": {scope: list(ends) for scope, ends in table.random.items()},
        "tokens": _whole(table.tokens[1]) if table.tokens else None,
    }


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)
