"""The verdicts of a table: its comparisons and findings, tested together at one level.

With an order that the study declares, its findings are tested, one after the other; all else is
described. Without one, every finding and every difference to the baseline is tested, by Holm's
method. A comparison that is both counts once. An A/A arm is never tested.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from moebench.errors import RecordError, nearest
from moebench.plans import PRIMARY
from moebench.records import printable
from moebench.report.infer.arms import CONTROLS, PERTURB, Arm, Table
from moebench.report.infer.contrasts import Contrast, contrast
from moebench.report.infer.decisions import (
    LEVEL,
    SHOWS,
    TREATMENT,
    Decision,
    adjusted,
    treatment_shows,
)
from moebench.report.infer.metrics import control_of
from moebench.report.infer.statistics import VERDICT_SEEDS
from moebench.report.paper.findings import findings
from moebench.report.paper.verdicts import (
    NOT_TESTED,
    TOO_EARLY,
    Effect,
    Evidence,
    Verdict,
    effects,
    few_seeds,
    verdict,
)

UNNAMED = "the study's order of findings does not name it"
BLOCKED = "a finding before it in the study's order is not decided"
TWIN = "it is the noise floor"


def judge(table: Table) -> tuple[Table, tuple[Verdict, ...]]:
    """The table with its decisions, and its verdicts on the findings.

    Raises:
        RecordError: if the study's order names a finding that does not exist.
    """
    evidence = _evidence(table)
    shown = effects(evidence) if table.primary == PRIMARY else []
    compared = _differences(table, evidence)
    order = _ranks(table.order)
    named = sorted(
        (effect for effect in shown if effect.name in order),
        key=lambda effect: (order[effect.name], 0 not in effect.columns),
    )
    tests = {_key(effect): _p(effect.contrast, effect.p) for effect in named or shown}
    if not named:
        for i, difference in compared.items():
            if PERTURB not in table.arms[i].science:
                tests.setdefault(frozenset((i, 0)), _p(difference, difference.estimate().p))
    settled = {} if table.too_early else _settled(tests, bool(named))
    decisions = {
        table.arms[i].name: _decision(table, i, difference, settled)
        for i, difference in compared.items()
    }
    verdicts = []
    for effect in shown:
        p, withheld = _of(table, settled, _key(effect), effect.contrast)
        treatment = _treatment(table, effect.columns) if effect.takes else None
        verdicts.append(
            verdict(
                effect,
                evidence,
                p=p,
                withheld=(TOO_EARLY if table.too_early else NOT_TESTED, withheld),
                treatment=treatment,
                took=treatment is None or treatment >= SHOWS,
                tests=max(1, len(tests)),
                family=1 if named else max(1, len(tests)),
            )
        )
    arms = [_with_p(arm, table.primary, decisions.get(arm.name)) for arm in table.arms]
    return replace(table, arms=tuple(arms), decisions=decisions), tuple(verdicts)


def _evidence(table: Table) -> Evidence:
    seeds = sorted({seed for arm in table.arms for seed in arm.seeds})
    per_seed = [arm.per_seed.get(table.primary, {}) for arm in table.arms]
    values = np.array([[of.get(seed, np.nan) for of in per_seed] for seed in seeds])
    names = [arm.name for arm in table.arms]
    values[:, 0] = control_of(values, [names.index(name) for name in table.control])
    sciences = [arm.science for arm in table.arms]
    return Evidence(names, sciences, values, table.bytes_per_token)


def _differences(table: Table, evidence: Evidence) -> dict[int, Contrast]:
    """Each arm's contrast with the control, by its column; without a twin that is a part of it."""
    arms = np.eye(len(table.arms))
    return {
        i: contrast(evidence.values, arms[i] - arms[0])
        for i in range(1, len(arms))
        if table.arms[i].name in table.comparisons.arms and table.arms[i].name not in table.control
    }


def _ranks(order: Sequence[str]) -> dict[str, int]:
    known = list(findings())
    for name in order:
        if name not in known:
            near = ", ".join(nearest(name, known) or known)
            raise RecordError(
                f"study.order={printable(name)}: is no finding; did you mean {near}? Plan the "
                "study again with moebench sweep"
            )
    return {name: rank for rank, name in enumerate(order)}


def _key(effect: Effect) -> Hashable:
    plain = effect.finding["type"] == "difference"
    return frozenset(effect.columns) if plain else (effect.name, tuple(effect.columns))


def _p(measured: Contrast, p: float | None) -> float | None:
    return p if measured.seeds >= VERDICT_SEEDS and measured.error is not None else None


def _settled(tests: Mapping[Hashable, float | None], ordered: bool) -> dict[Hashable, float | str]:
    """By the key of a test, its adjusted p, or why it has none.

    Args:
        tests: p of each alone, by its key: the two columns of a difference, in no order; for others
            the finding and its columns. None where too few seeds have its arms.
        ordered: whether they come in a declared order.
    """
    known = {key: p for key, p in tests.items() if ordered or p is not None}
    if not known:
        return {}
    p = adjusted(np.array([1.0 if alone is None else alone for alone in known.values()]), ordered)
    result: dict[Hashable, float | str] = {}
    for place, (key, value) in enumerate(zip(known, p, strict=True)):
        if ordered and place and p[place - 1] >= LEVEL:
            result[key] = BLOCKED
        elif known[key] is not None:
            result[key] = float(value)
    return result


def _of(
    table: Table, settled: Mapping[Hashable, float | str], key: Hashable, measured: Contrast
) -> tuple[float | None, str]:
    """The adjusted p of a test, or None and why it has none."""
    value = settled.get(key, UNNAMED)
    if isinstance(value, float):
        return value, ""
    why = table.too_early or few_seeds(measured.seeds)
    return None, why or ("the runs do not vary" if measured.error is None else str(value))


def _decision(
    table: Table, column: int, measured: Contrast, settled: Mapping[Hashable, float | str]
) -> Decision:
    p, withheld = _of(table, settled, frozenset((column, 0)), measured)
    science = table.arms[column].science
    if PERTURB in science:
        p, withheld = None, TWIN
    takes = not {*CONTROLS} & {*science}
    treatment = _treatment(table, (column, 0)) if takes else None
    return Decision(p, withheld, treatment, measured.estimate())


def _treatment(table: Table, columns: Sequence[int]) -> float | None:
    """By how many deviations the first and the last of some arms differ in their load."""
    first, last = (table.arms[i].per_seed.get(TREATMENT, {}) for i in (columns[0], columns[-1]))
    return treatment_shows(first, last)


def _with_p(arm: Arm, primary: str, decision: Decision | None) -> Arm:
    if decision is None or primary not in arm.metrics:
        return arm
    metric = replace(arm.metrics[primary], p=decision.p)
    return replace(arm, metrics=arm.metrics | {primary: metric})
