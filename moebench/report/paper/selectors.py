"""Which arms a finding is about: by the keys of their config, equal in all that it does not name.

A selector is a mapping from keys to values, as the YAML files of this folder have them. A value
that is itself a key, as in `balance_bsz: global_bsz`, stands for that key's value; null for a key
at its default. `terms` are described with their starts and stops as shares of the steps. A trend
names an axis of `AXES`, which gives an arm its place.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moebench.config.treatment import in_steps
from moebench.report.infer.arms import CONTROLS

TREATMENT = ("scope", "balance_bsz", "loss.balance", "terms", "seed")
Science = Mapping[str, Any]  # an arm's keys that are not at their neutral value


def options_as_keys(science: Science) -> dict[str, Any]:
    """A method's options as dotted keys, as they are typed."""
    plain = {key: value for key, value in science.items() if key != "method.options"}
    options = science.get("method.options")
    options = options if isinstance(options, dict) else {}
    return plain | {f"method.options.{key}": value for key, value in options.items()}


def pairs(sciences: Sequence[Science], *selectors: Mapping[str, Any]) -> Iterable[tuple[int, ...]]:
    """Columns that meet the selectors in turn and are equal in every key that none names.

    Their balance losses have one weight, unless one of them has none by its selector.
    """
    named = {key for selector in selectors for key in selector}
    if any(selector.get("scope") == "none" for selector in selectors):
        named.add("weight")
    matches = [
        [i for i, science in enumerate(sciences) if meets(selector, science)]
        for selector in selectors
    ]
    for first in matches[0]:
        wanted = all_else(sciences[first], named)
        others = [
            next((i for i in columns if all_else(sciences[i], named) == wanted), None)
            for columns in matches[1:]
        ]
        if None not in others:
            yield (first, *(int(i) for i in others if i is not None))


def meets(selector: Mapping[str, Any], science: Science) -> bool:
    """Whether a selector means an arm.

    It means no control arm and no estimator or terms unless it names their key.
    """
    unnamed = {*CONTROLS, "balance.estimator", "terms"} - {*selector}
    return not unnamed & {*science} and all(
        key not in science
        if wanted is None
        else key in science and equals(wanted, science[key], science)
        for key, wanted in selector.items()
    )


def equals(wanted: Any, actual: Any, science: Science) -> bool:
    """Whether a value is what a selector wants of it."""
    if isinstance(wanted, list):
        return (
            isinstance(actual, list)
            and len(wanted) == len(actual)
            and all(_is_term(w, a, actual[0], science) for w, a in zip(wanted, actual, strict=True))
        )
    if isinstance(wanted, str) and wanted in science:  # as in balance_bsz: global_bsz
        wanted = science[wanted]
    return wanted == actual


def _is_term(
    wanted: Mapping[str, Any], actual: Mapping[str, Any], first: Mapping[str, Any], science: Science
) -> bool:
    """Compare a term: start and stop as shares of the steps, the weight as a share of the first."""
    if {"start", "stop"} & {*actual} != {"start", "stop"} & {*wanted}:
        return False
    steps = science["train.steps"]
    moments = {key: in_steps(wanted[key], steps) for key in ("start", "stop") if key in wanted}
    if any(actual[key] != moment for key, moment in moments.items()):
        return False
    if not math.isclose(actual["weight"], wanted.get("share", 1) * first["weight"]):
        return False
    plain = {key: wanted[key] for key in ("scope", "balance_bsz")}
    return all(equals(value, actual.get(key), science) for key, value in plain.items())


def all_else(science: Science, named: Iterable[str]) -> dict[str, Any]:
    """What arms of one finding must share: all but the treatment, and its weight."""
    terms = science.get("terms")
    weight = terms[0]["weight"] if terms else science.get("loss.balance")
    apart = {*TREATMENT, *named, "balance.pass_bsz"}
    whole = {**science, "weight": weight}
    return {key: value for key, value in whole.items() if key not in apart}


# Axes of trends


def _log2_balance_bsz(science: Science) -> float | None:
    size = science.get("balance_bsz")
    if not meets({"scope": "group"}, science) or not isinstance(size, int) or size < 1:
        return None
    return math.log2(size)


def share_before_global(science: Science) -> float | None:
    """The share of the steps that an arm spends in micro before global; None for other arms."""
    micro, whole = (
        {"scope": "group", "balance_bsz": f"{size}_bsz"} for size in ("micro", "global")
    )
    if meets(whole, science) or meets(micro, science):
        return float(meets(micro, science))
    terms = science.get("terms")
    if not isinstance(terms, list) or len(terms) != 2 or {*CONTROLS} & {*science}:
        return None
    switch = terms[0].get("stop")
    share = None if switch is None else switch / science["train.steps"]
    wanted = [micro | {"stop": share}, whole | {"start": share}]
    return share if share is not None and equals(wanted, terms, science) else None


def _homogeneity(science: Science) -> float | None:
    rest = {key: value for key, value in science.items() if key != "data.homogeneity"}
    if not meets({"scope": "group", "balance_bsz": "micro_bsz"}, rest):
        return None
    return science.get("data.homogeneity", 1.0)


AXES = {
    "log2 balance_bsz": (_log2_balance_bsz, " a doubling"),
    "share of the steps before global": (share_before_global, " for all of the steps"),
    "homogeneity of micro-batches": (_homogeneity, " from mixed to pure"),
}
"""By its name in a finding: an arm's place on the axis or None, and what a slope is for."""
