"""The look of a stopping rule and the preregistration of a study, in words."""

from moebench.looks import looks
from moebench.plans import PRIMARY
from moebench.report.infer.arms import Table
from moebench.report.infer.stopping import OPEN, WITHIN
from moebench.report.show.numbers import as_percent

SHOWN = 12  # digits of a hash in a sentence; --json has all
STOPPED = "No verdict at this look, so no more seeds are trained; train longer (train.steps)."


def look(table: Table) -> str:
    """At which look the study is, and what it decided there; "" without a stopping rule."""
    rule = table.rule
    if rule is None:
        return ""
    at = rule.look
    begin = f"Stopping rule: {at}, tested at {as_percent(at.level)}"
    if rule.void:
        return f"{begin}. Its level is void: {rule.void}."
    if table.too_early:
        going = table.interim is not None or table.step is not None
        return f"{begin}; {table.too_early}." + ("" if going else f" {STOPPED}")
    margin = "" if rule.margin is None else f" of {rule.margin:g}{_unit(table)}{rule.per}"
    if rule.outcome == WITHIN:
        return (
            f"{begin}: the first finding is no difference beyond the margin{margin}, which ends "
            "the study. The findings behind it are not tested."
        )
    if rule.outcome != OPEN:
        return f"{begin}: the first finding is decided, which ends the study."
    if rule.ended:
        return f"{begin}: the last look, and the first finding is not decided."
    following = looks(at.most)[at.number].seeds
    return f"{begin}: the first finding is not decided yet; the next look is at {following} seeds."


def registration(table: Table) -> str:
    """The preregistration and what deviates from it; "" without one."""
    found = table.registered
    if found is None:
        return ""
    if not found.sha256:
        return f"Preregistered, but {'; '.join(found.deviations)}."
    begin = f"Preregistered on {found.date}, sha256 {found.sha256[:SHOWN]}"
    if not found.deviations:
        return f"{begin}; nothing deviates from it."
    return f"{begin}. Deviations: {'; '.join(found.deviations)}."


def _unit(table: Table) -> str:
    return f" nats a {'byte' if table.bytes_per_token else 'token'}" * (table.primary == PRIMARY)
