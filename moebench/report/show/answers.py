"""The answers of a table in a few lines: what stands first in every form of the report.

One line a question: which arm has the best primary endpoint and how sure that is, what the arms do
to load and to specialisation, and what they cost. Beside a secondary endpoint stands how many of
its differences are decided; the others describe.
"""

from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

from moebench.catalogue import find
from moebench.plans import PRIMARY
from moebench.report.infer.arms import BITS, PERTURB, Arm, Table
from moebench.report.infer.decisions import Decision
from moebench.report.infer.headroom import headroom
from moebench.report.infer.statistics import LEVEL, Estimate
from moebench.report.show.numbers import as_percent, four_decimals, interval, p_value
from moebench.report.show.registered import look, registration
from moebench.report.show.sentences import control, interim

EXPERTS = "load/experts_per_token"
MORE = 1.05  # times top_k: an arm whose tokens take more experts is a larger model
LOAD, REPLAY, DOMAIN = "load/max_vio_micro", "router/replay_cost", "specialization/domain"
SLOWDOWN = "ep/slowdown"


class Answer(NamedTuple):
    """One line of the report's beginning.

    Attributes:
        question: `interim`, `look`, `registration`, `headroom`, `quality`, `load`,
            `specialisation`, `treatment` or `cost`.
        text: the sentence.
        metric: that it is about.
        arm: the one that has the best or the smallest mean.
    """

    question: str
    text: str
    metric: str
    arm: str


def answers(table: Table) -> list[Answer]:
    """The answers that the runs of a table allow; none for a single arm whose study has ended.

    That a study has not ended comes first, then headroom where arms are prescribed, then quality.
    """
    meanwhile = [
        Answer(question, text, table.primary, table.baseline)
        for question, text in (
            ("interim", interim(table)),
            ("look", look(table)),
            ("registration", registration(table)),
        )
        if text
    ]
    if len(table.arms) < 2:
        return meanwhile
    found = [
        *meanwhile,
        _headroom(table),
        _quality(table),
        _range("load", LOAD, "Load: MaxVio of micro-batches (0 is even)", table, ".2f"),
        _range(
            "specialisation",
            REPLAY,
            "Specialisation: replay cost, nats a token by experts of another domain,",
            table,
            ".4f",
        ),
        _range(
            "treatment",
            DOMAIN,
            "Check of the treatment: domain bits (0: experts ignore domains)",
            table,
            ".3f",
        ),
        _cost(table),
    ]
    return [answer for answer in found if answer is not None]


def _headroom(table: Table) -> Answer | None:
    """What the domain is worth to a router, and how many learned arms are behind the hash."""
    room = headroom(table)
    if room is None:
        return None
    worth = [
        f"{name} {four_decimals(value.value)}{_ends(value)}, what a router that {knows} gains "
        "from the domain"
        for name, value, knows in (
            ("H = T - TD", room.by_token, "knows the token"),
            ("S - D", room.by_sequence, "does not know the token"),
        )
        if value is not None
    ]
    first = next((place.arm.name for place in room.places if place.role in ("T", "TD")), "")
    learned = [place for place in room.places if place.learned]
    behind = sum(place.behind for place in learned)
    text = f"Headroom in nats a byte: {'; '.join(worth)}." if worth else "Headroom:"
    if learned:
        text += f" {behind} of {len(learned)} learned arms are behind T in every seed."
    return Answer("headroom", text, BITS, first) if worth or learned else None


def _ends(value: Estimate) -> str:
    """The interval of a value in brackets, with how sure it is; "" without one."""
    ends = interval(value.low, value.high)
    return f" ({as_percent(LEVEL)}: {ends})" if ends else ""


def _quality(table: Table) -> Answer | None:
    larger = _larger(table)
    means = {n: mean for n, mean in _means(table, table.primary).items() if n not in larger}
    if not means:
        return None
    metric = find(table.primary)
    highest = metric is not None and metric.direction == "higher"
    best = (max if highest else min)(means, key=lambda name: means[name])
    unit = f" {metric.unit}" if metric and metric.unit not in ("", "share") else ""
    extreme = "highest" if highest else "lowest"
    name = f"validation loss ({PRIMARY})" if table.primary == PRIMARY else table.primary
    text = f"Quality: {best} has the {extreme} {name}, {means[best]:.4f}{unit}"
    if best == table.baseline:
        text += ", and is the baseline"
    elif best in table.comparisons.arms:
        text += f"; to {control(table)}: {_difference(best, table)}"
    left_out = [f"{name} ({number:.1f} experts a token)" for name, number in larger.items()]
    text += f"; left out: {', '.join(left_out)}" if left_out else ""
    text += "." if table.interim else f". {_sureness(table)}"
    return Answer("quality", text, table.primary, best)


def _larger(table: Table) -> dict[str, float]:
    """The arms whose tokens take more experts than top_k, and how many."""
    top_k = {arm.name: arm.science.get("model.top_k") for arm in table.arms}
    experts = _means(table, EXPERTS)
    return {
        name: number
        for name, number in experts.items()
        if (k := top_k[name]) is not None and number > MORE * k
    }


def _difference(name: str, table: Table) -> str:
    """An arm's difference with its interval and its verdict, or why it has none."""
    comparison, decision = table.comparisons.arms[name], table.decisions.get(name)
    alone = comparison.paired or comparison.adjusted
    about = f"{four_decimals(alone.value)}{_ends(alone)}"
    if decision is None or decision.p is None:
        tested = any(each.p is not None for each in table.decisions.values())
        return f"{about}, no verdict" if tested else about
    return f"{about}, {'decided' if decision.decided else 'not decided'}, {p_value(decision.p)}"


def _sureness(table: Table) -> str:
    """How many differences of the table are decided, or why none can be."""
    if table.no_verdict:
        return f"No verdict{' yet' * bool(table.too_early)}: {table.no_verdict}."
    compared = table.comparisons.arms
    if compared and all(len(each.per_seed) < table.fewest for each in compared.values()):
        seeds = max(len(each.per_seed) for each in compared.values())
        return f"No verdict: {seeds} shared seed{'s' * (seeds != 1)}, and it takes {table.fewest}."
    return _told(table.decisions.values()) or "There is no verdict."


def _range(question: str, name: str, title: str, table: Table, form: str) -> Answer | None:
    """From which arm to which a metric goes, and where the baseline lies."""
    means = _means(table, name)
    found = _from_to(question, name, title, means, table.baseline, lambda x: format(x, form))
    told = _told(table.secondary_decisions.get(name, {}).values())
    if found is None or not told:
        return found
    return found._replace(text=f"{found.text} {told}")


def _told(decisions: Iterable[Decision]) -> str:
    """How many differences to the control are decided; "" where none is tested."""
    given = [each for each in decisions if each.p is not None]
    if not given:
        return ""
    decided, several = sum(each.decided for each in given), "s" * (len(given) != 1)
    at = as_percent(given[0].level)
    return f"{decided} of {len(given)} tested difference{several} decided at {at}."


def _cost(table: Table) -> Answer | None:
    """Seconds a step where the arms were timed, else the virtual slowdown."""
    timed = {
        arm.name: median(arm.cost.step_seconds)
        for arm in _treatments(table)
        if arm.cost and arm.cost.step_seconds
    }
    if len(timed) > 1:
        return _from_to("cost", "", "Cost: seconds a step", timed, table.baseline, "{:.4f}".format)
    means = _means(table, SLOWDOWN)
    title = "Cost: virtual slowdown of expert layers (1 is even)"
    return _from_to("cost", SLOWDOWN, title, means, table.baseline, "{:.3f}".format)


def _from_to(
    question: str,
    name: str,
    title: str,
    means: dict[str, float],
    baseline: str,
    form: Callable[[float], str],
) -> Answer | None:
    if len(means) < 2:
        return None
    least, most = (end(means, key=lambda arm: means[arm]) for end in (min, max))
    lowest, highest = form(means[least]), form(means[most])
    if lowest == highest:
        return Answer(question, f"{title} {lowest} in all {len(means)} arms.", name, least)
    text = f"{title} from {lowest} ({least}) to {highest} ({most})"
    if baseline in means and baseline not in (least, most):
        text += f"; {baseline} {form(means[baseline])}"
    return Answer(question, f"{text}.", name, least)


def _means(table: Table, name: str) -> dict[str, float]:
    found = {arm.name: arm.metrics.get(name) for arm in _treatments(table)}
    return {arm: m.mean for arm, m in found.items() if m is not None and m.mean is not None}


def _treatments(table: Table) -> Iterable[Arm]:
    """The arms without A/A twins, which are the noise floor."""
    return (arm for arm in table.arms if PERTURB not in arm.science)
