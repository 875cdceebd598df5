"""The verdicts of a table: its comparisons and findings, in two families at one level each.

The first family is that of the primary endpoint. With an order that the study declares, its
findings are tested, one after the other; all else is described. Without one, every finding and
every difference to the baseline is tested, by Holm's method. The second family are the differences
in the secondary endpoints that the study declares, and the findings on load and routing, by Holm's
method. A comparison that is both counts once. An A/A arm is never tested.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moebench.errors import RecordError
from moebench.looks import looks
from moebench.plans import PRIMARY
from moebench.report.infer.arms import CONTROLS, PERTURB, Arm, Table
from moebench.report.infer.contrasts import Contrast, contrast
from moebench.report.infer.decisions import (
    SHOWS,
    TREATMENT,
    Decision,
    adjusted,
    treatment_shows,
)
from moebench.report.infer.metrics import control_of
from moebench.report.infer.stopping import OPEN, Rule, outcome
from moebench.report.paper.findings import findings, has_margin, order_error
from moebench.report.paper.verdicts import (
    NOT_TESTED,
    TOO_EARLY,
    Effect,
    Evidence,
    Verdict,
    effects,
    few_seeds,
    metric_of,
    verdict,
)

UNNAMED = "the study's order of findings does not name it"
BLOCKED = "a finding before it in the study's order is not decided"
TWIN = "it is the noise floor"


@dataclass(frozen=True)
class Endpoint:
    """A metric of a table: what its runs show, and what is compared in it.

    Attributes:
        evidence: the values.
        effects: on the findings about it.
        differences: to the control, by column; empty where only findings are tested.
    """

    evidence: Evidence
    effects: list[Effect]
    differences: dict[int, Contrast]

    @property
    def metric(self) -> str:
        return self.evidence.metric

    def key(self, columns: Iterable[int]) -> Hashable:
        """Of the test of two arms, in no order."""
        return self.metric, frozenset(columns)

    def key_of(self, effect: Effect) -> Hashable:
        plain = effect.finding["type"] == "difference"
        return self.key(effect.columns) if plain else (effect.name, tuple(effect.columns))


def judge(table: Table) -> tuple[Table, tuple[Verdict, ...]]:
    """The table with its decisions, and its verdicts on the findings.

    Raises:
        RecordError: if the study's order names a finding that does not exist.
    """
    first = [_endpoint(table, table.primary, compared=True)]
    if table.rule is not None:
        table = replace(table, rule=_looked_at(table, table.rule, first[0]))
    of_findings = map(metric_of, findings().values())
    measured = {metric for arm in table.arms for metric in arm.metrics}
    second = [
        _endpoint(table, metric, compared=metric in table.secondary)
        for metric in dict.fromkeys([*table.secondary, *of_findings])
        if metric in measured - {table.primary, PRIMARY}
    ]
    decisions: dict[str, dict[str, Decision]] = {}
    verdicts: list[Verdict] = []
    for endpoints, order in ((first, table.order), (second, ())):
        decided, found = _family(table, endpoints, _ranks(order))
        decisions |= decided
        verdicts += found
    arms = [_with_p(arm, decisions) for arm in table.arms]
    primary = decisions.pop(table.primary)
    table = replace(table, arms=tuple(arms), decisions=primary, secondary_decisions=decisions)
    return table, tuple(verdicts)


def _family(
    table: Table, endpoints: Sequence[Endpoint], order: Mapping[str, int]
) -> tuple[dict[str, dict[str, Decision]], list[Verdict]]:
    """The decisions, by metric and arm, and the verdicts of endpoints that share a level."""
    effects = [(endpoint, effect) for endpoint in endpoints for effect in endpoint.effects]
    named = sorted(
        ((endpoint, effect) for endpoint, effect in effects if effect.name in order),
        key=lambda pair: _place(pair[1], order),
    )
    tests = {
        endpoint.key_of(effect): _p(effect.contrast, effect.p, table.fewest)
        for endpoint, effect in named or effects
    }
    if not named:
        for endpoint in endpoints:
            for i, difference in endpoint.differences.items():
                if PERTURB not in table.arms[i].science:
                    alone = _p(difference, difference.estimate().p, table.fewest)
                    tests.setdefault(endpoint.key((i, 0)), alone)
    settled = {} if table.no_verdict else _settled(tests, bool(named), table.level)
    decisions = {
        endpoint.metric: {
            table.arms[i].name: _decision(table, endpoint, i, difference, settled)
            for i, difference in endpoint.differences.items()
        }
        for endpoint in endpoints
    }
    size = max(1, len(tests))
    looked_at = named[0][1] if named and table.rule else None
    verdicts = [
        _verdict(
            table,
            endpoint,
            effect,
            settled,
            tests=size,
            family=1 if named else size,
            within=effect is looked_at and table.rule is not None and table.rule.within,
        )
        for endpoint, effect in effects
    ]
    return decisions, verdicts


def _verdict(
    table: Table,
    endpoint: Endpoint,
    effect: Effect,
    settled: Mapping[Hashable, float | str],
    *,
    tests: int,
    family: int,
    within: bool,
) -> Verdict:
    p, withheld = _of(table, settled, endpoint.key_of(effect), effect.contrast)
    takes = effect.takes and endpoint.metric == PRIMARY
    treatment = _treatment(table, effect.columns) if takes else None
    return verdict(
        effect,
        endpoint.evidence,
        p=p,
        withheld=(TOO_EARLY if table.too_early else NOT_TESTED, withheld),
        treatment=treatment,
        took=treatment is None or treatment >= SHOWS,
        tests=tests,
        family=family,
        margin=table.rule.margin if table.rule and within else None,
    )


def _endpoint(table: Table, metric: str, *, compared: bool) -> Endpoint:
    """A metric of a table.

    Args:
        compared: whether arms are compared with the control in it.
    """
    seeds = sorted({seed for arm in table.arms for seed in arm.seeds})
    per_seed = [arm.per_seed.get(metric, {}) for arm in table.arms]
    values = np.array([[of.get(seed, np.nan) for of in per_seed] for seed in seeds])
    names = [arm.name for arm in table.arms]
    values[:, 0] = control_of(values, [names.index(name) for name in table.control])
    sciences = [arm.science for arm in table.arms]
    of_bytes = table.bytes_per_token if metric == PRIMARY else None
    evidence = Evidence(names, sciences, values, of_bytes, metric, table.level)
    differences = _differences(table, evidence) if compared else {}
    return Endpoint(evidence, effects(evidence), differences)


def _differences(table: Table, evidence: Evidence) -> dict[int, Contrast]:
    """Each arm's contrast with the control, by its column; without a twin that is a part of it."""
    arms = np.eye(len(table.arms))
    contrasts = {
        i: contrast(evidence.values, arms[i] - arms[0])
        for i in range(1, len(arms))
        if table.arms[i].name not in table.control
    }
    return {i: measured for i, measured in contrasts.items() if measured.seeds}


def shown_by(sciences: Sequence[Mapping[str, Any]], metric: str) -> set[str]:
    """The names of the findings on a metric for which arms of these settings are there."""
    values = np.random.default_rng(0).normal(size=(3, len(sciences)))  # any that have a scatter
    names = [str(number) for number in range(len(sciences))]
    return {effect.name for effect in effects(Evidence(names, sciences, values, None, metric))}


def _ranks(order: Sequence[str]) -> dict[str, int]:
    once = [*dict.fromkeys(order)]
    if wrong := order_error(once):
        raise RecordError(f"{wrong} Plan the study again with moebench sweep")
    return {name: rank for rank, name in enumerate(once)}


def _place(effect: Effect, order: Mapping[str, int]) -> tuple[int, bool]:
    """Where an effect comes in a declared order: of one finding, those with the baseline first."""
    return order[effect.name], 0 not in effect.columns


def _looked_at(table: Table, rule: Rule, endpoint: Endpoint) -> Rule:
    """The rule with the outcome of its look, void if an earlier look had ended the study."""
    order = _ranks(table.order)
    evidence, last = endpoint.evidence, rule.look
    seeds = sorted({seed for arm in table.arms for seed in arm.seeds})
    for look in looks(last.most)[: last.number]:
        there = np.isin(seeds, rule.seeds[: look.seeds])
        seen = replace(evidence, values=evidence.values[there], level=look.level)
        named = [effect for effect in effects(seen) if effect.name in order]
        first = min(named, key=lambda effect: _place(effect, order), default=None)
        found, per = OPEN, ""
        if first is not None and not table.too_early:
            p, per = _p(first.contrast, first.p, look.seeds), first.per
            margin = rule.margin if has_margin(first.finding) else None
            found = outcome(first.contrast, p, look, margin, evidence.bytes_per_token or 1.0)
        if look.number == last.number:
            return replace(rule, outcome=found, per=per)
        if found != OPEN and not rule.void:
            added = f"the rule ended the study at {look}, and seeds were added by hand"
            rule = replace(rule, void=added)
    return rule


def _p(measured: Contrast, p: float | None, fewest: int) -> float | None:
    return p if measured.seeds >= fewest and measured.error is not None else None


def _settled(
    tests: Mapping[Hashable, float | None], ordered: bool, level: float
) -> dict[Hashable, float | str]:
    """By the key of a test, its adjusted p, or why it has none.

    Args:
        tests: p of each alone, by the key of its endpoint. None where too few seeds have its arms.
        ordered: whether they come in a declared order.
    """
    known = {key: p for key, p in tests.items() if ordered or p is not None}
    if not known:
        return {}
    p = adjusted(np.array([1.0 if alone is None else alone for alone in known.values()]), ordered)
    result: dict[Hashable, float | str] = {}
    for place, (key, value) in enumerate(zip(known, p, strict=True)):
        if ordered and place and p[place - 1] >= level:
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
    why = table.no_verdict or few_seeds(measured.seeds, table.fewest)
    return None, why or ("the runs do not vary" if measured.error is None else str(value))


def _decision(
    table: Table,
    endpoint: Endpoint,
    column: int,
    measured: Contrast,
    settled: Mapping[Hashable, float | str],
) -> Decision:
    p, withheld = _of(table, settled, endpoint.key((column, 0)), measured)
    science = table.arms[column].science
    if PERTURB in science:
        p, withheld = None, TWIN
    takes = endpoint.metric == table.primary and not {*CONTROLS} & {*science}
    treatment = _treatment(table, (column, 0)) if takes else None
    return Decision(p, withheld, treatment, measured.estimate(1 - table.level), table.level)


def _treatment(table: Table, columns: Sequence[int]) -> float | None:
    """By how many deviations the first and the last of some arms differ in their load."""
    first, last = (table.arms[i].per_seed.get(TREATMENT, {}) for i in (columns[0], columns[-1]))
    return treatment_shows(first, last)


def _with_p(arm: Arm, decisions: Mapping[str, Mapping[str, Decision]]) -> Arm:
    """The arm with the p of what is decided about it, by metric and arm."""
    decided = {
        metric: replace(arm.metrics[metric], p=of_arms[arm.name].p)
        for metric, of_arms in decisions.items()
        if arm.name in of_arms and metric in arm.metrics
    }
    return replace(arm, metrics=arm.metrics | decided)
