"""Cells, tables and headings of the page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from docs.published.study import NO_VERDICT, TUNED, Row, Study
from moebench.plans import PRIMARY
from moebench.report.infer.arms import BITS
from moebench.report.infer.statistics import mean_interval
from moebench.report.paper.verdicts import CANNOT_TELL, TOO_EARLY
from moebench.report.show.numbers import as_percent, count_range, four_decimals, interval, p_value

Studies = Mapping[str, Study]
SIZE = (  # keys by which studies of one name and text are told apart
    *("model.num_layers", "model.d_model", "model.num_experts", "model.top_k"),
    *("global_bsz", "train.steps", "router.init", "optim.router_lr", "loss.balance"),
)
CONSTANTS = ("tokens", "seeds")  # columns that may have one value


def grid(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in rows]
    if not lines:
        return ""
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [headers, ["---"] * len(headers), *lines]
    )


def without_constants(
    headers: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]], str]:
    """A table without its columns of tokens and seeds where all rows agree, and a sentence."""
    same = {
        name: values.pop()
        for at, name in enumerate(headers)
        if name in CONSTANTS and len(values := {row[at] for row in rows}) == 1
    }
    kept = [at for at, name in enumerate(headers) if name not in same]
    told = " and ".join(f"{value} {name}" for name, value in same.items())
    return (
        [headers[at] for at in kept],
        [[row[at] for at in kept] for row in rows],
        f"All rows are of {told}." * bool(same),
    )


def ends(effect: Row, *, share: bool = False) -> str:
    """A value with its interval, as it is or in percent."""
    value, low, high = effect["value"], effect["low"], effect["high"]
    if value is None:
        return ""
    if not share:
        between = interval(low, high)
        return four_decimals(value) + f" ({between})" * bool(between)
    between = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * value:.1f} %{between}"


def at_level(effect: Row) -> str:
    """A value, with the level of its interval within the parentheses."""
    return ends(effect).replace("(", f"({as_percent(1 - effect['level'])}: ", 1)


def said(effect: Row) -> str:
    """A verdict with the reason and its p; "" for a difference that is described alone.

    Why it is too early stands once, in the facts of the study.
    """
    if effect["verdict"] in (NO_VERDICT, TOO_EARLY):
        return "" if effect["verdict"] == NO_VERDICT else TOO_EARLY
    p = f" ({p_value(effect['p'])})" if effect["p"] is not None else ""
    return effect["verdict"] + f": {effect['text']}" * bool(effect["text"]) + p


def settled(study: Study, effect: Row) -> str:
    """What is said of a difference; where it is not decided, what is said of the finding of it."""
    sides = {key: effect[key] for key in ("arm", "against", "metric", "part")}
    tests = [of for of in study.found("finding", **sides) if of["p"] is not None]
    decided = effect["p"] is not None and effect["verdict"] != CANNOT_TELL
    return said(effect if decided or not tests else tests[0])


def listed(seeds: Iterable[int]) -> str:
    """Seeds, by their ends where they follow one another."""
    numbers = sorted(seeds)
    if len(numbers) > 2 and numbers == [*range(numbers[0], numbers[-1] + 1)]:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def code(commands: Iterable[str]) -> str:
    return "\n".join(["```", *dict.fromkeys(commands), "```"])


def count(tokens: float | None) -> str:
    """Of tokens, in millions where they are many."""
    return "" if tokens is None else count_range((tokens, tokens))


def nats(run: Row) -> float:
    """Nats a byte; NaN where they were not measured."""
    return math.log(2) * run["metrics"].get(BITS, math.nan)


def mean(values: Sequence[float], decimals: int) -> str:
    """A mean, ± half of its 95 % interval where there are three values; "" without any."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return ""
    found = mean_interval(known)
    half = "" if found.low is None else f" ±{found.value - found.low:.{decimals}f}"
    return f"{found.value + 0.0:.{decimals}f}{half}"


def made_with(about: Mapping[str, str]) -> str:
    """A sentence on versions and the processor."""
    keys = ("moebench", "commit", "torch", "python")
    parts = [f"{key} {about[key]}" for key in keys if about.get(key)]
    return f"Made with {', '.join(parts)} on {about.get('processor') or 'an unnamed processor'}."


def titles(studies: Studies) -> dict[str, str]:
    """The heading of each study, by its CSV's name; of one at several sizes, with what differs."""
    found = {name: _title(study) for name, study in studies.items() if name not in TUNED}
    for title in {*found.values()}:
        alike = [name for name, of in found.items() if of == title]
        sizes = {name: [studies[name].settings.get(key) for key in SIZE] for name in alike}
        for name in alike if len(alike) > 1 else ():
            told = [
                f"{key}={value}"
                for place, (key, value) in enumerate(zip(SIZE, sizes[name], strict=True))
                if value is not None and len({str(of[place]) for of in sizes.values()}) > 1
            ]
            only = [*sizes.values()].count(sizes[name]) == 1
            found[name] = ", ".join([title, *(told if only and told else [name])])
    return found


def _title(study: Study) -> str:
    about = study.about
    text = "installed text" if study.installed else f"{about.get('domains', 'other')} domains"
    return f"{about['study']} on {text}" + " (eligible)" * study.eligible


class Said(NamedTuple):
    """What a study says of a finding; its name and title."""

    name: str
    title: str
    effect: Row


def distinct(studies: Studies, **wanted: Any) -> list[Said]:
    """What studies say of findings, once.

    Studies share runs, and so repeat one another. What is said of the same runs stands once, in the
    words of the best study; what a better one says of these runs and more is left out. A study with
    a stopping rule is better than one without, which may test what the rule left untested; then a
    test is better than a description. Of tests of quality, which end studies, none is left out for
    one of more runs.
    """
    found = [
        Said(name, title, effect)
        for name, title in titles(studies).items()
        for effect in studies[name].found("finding", **wanted)
    ]

    def rank(each: Said) -> tuple[bool, bool]:
        return "look" in studies[each.name].about, each.effect["p"] is not None

    def told_by(other: Said, each: Said) -> bool:
        if any(other.effect[key] != each.effect[key] for key in ("claim", "metric")):
            return False
        ours, theirs = (_runs_of(studies[of.name], of.effect) for of in (each, other))
        keys = ("arm", "against", "value")
        same = ours == theirs if ours else all(other.effect[k] == each.effect[k] for k in keys)
        ends_none = each.effect["p"] is None or each.effect["metric"] != PRIMARY
        more = bool(ours) and ours < theirs and ends_none
        if rank(other) == rank(each):
            return more or (same and found.index(other) < found.index(each))
        return rank(other) > rank(each) and (same or (bool(ours) and ours <= theirs))

    return [
        each for each in found if not any(told_by(other, each) for other in found if other != each)
    ]


def _runs_of(study: Study, effect: Row) -> set[tuple[str, int, float]]:
    """The runs of an effect of two arms, whatever a study calls these; none of one of more arms."""
    by_arm, sides = study.by_arm(effect["part"]), ("arm", "against")
    return {(on, run["seed"], nats(run)) for on in sides for run in by_arm.get(effect[on], ())}


def tested(studies: Studies, **wanted: Any) -> Iterable[tuple[str, Row]]:
    """Those of them that are tests, each with its study's title."""
    said = distinct(studies, **wanted)
    return ((each.title, each.effect) for each in said if each.effect["p"] is not None)


def link(title: str) -> str:
    anchor = "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")
    return f"[{title}](#{anchor})"
