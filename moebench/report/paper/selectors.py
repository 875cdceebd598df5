"""Which arms a finding is about: by the keys of their config, equal in all that it does not name.

A selector is a mapping from keys to values, as the files in `paper/` have them. A word that is
itself a key, as in `balance_bsz: global_bsz`, stands for that key's value; null for a key at its
default. `terms` are told with their starts and stops as shares of the steps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moebench.config.schema import in_steps

CONTROLS = ("data.homogeneity", "router.perturb")  # at these a finding is not to be expected
TREATMENT = ("scope", "balance_bsz", "loss.balance", "terms", "seed")


def options_as_keys(science: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options as keys of their own, as they are typed."""
    plain = {key: value for key, value in science.items() if key != "method.options"}
    options = science.get("method.options")
    options = options if isinstance(options, dict) else {}
    return plain | {f"method.options.{key}": value for key, value in options.items()}


def pairs(
    sciences: Sequence[Mapping[str, Any]], *selectors: Mapping[str, Any]
) -> Iterable[tuple[int, ...]]:
    """Columns that meet the selectors in turn and are equal in every key that none names.

    Their balance losses have one weight, unless one of them has none by its selector.
    """
    named = {key for each in selectors for key in each}
    if any(each.get("scope") == "none" for each in selectors):
        named.add("weight")
    found = [
        [i for i, science in enumerate(sciences) if meets(each, science)] for each in selectors
    ]
    for first in found[0]:
        wanted = all_else(sciences[first], named)
        others = [
            next((i for i in each if all_else(sciences[i], named) == wanted), None)
            for each in found[1:]
        ]
        if None not in others:
            yield (first, *(int(i) for i in others if i is not None))


def meets(selector: Mapping[str, Any], science: Mapping[str, Any]) -> bool:
    """Whether an arm is meant. A control is not, nor one whose estimator is not named.

    A selector's null stands for a key at its default, which no science holds.
    """
    unnamed = {*CONTROLS, "balance.estimator", "terms"} - {*selector}
    return not unnamed & {*science} and all(
        key not in science
        if wanted is None
        else key in science and equals(wanted, science[key], science)
        for key, wanted in selector.items()
    )


def equals(wanted: Any, found: Any, science: Mapping[str, Any]) -> bool:
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(_is_term(w, f, found[0], science) for w, f in zip(wanted, found, strict=True))
        )
    if isinstance(wanted, str) and wanted in science:  # as in balance_bsz: global_bsz
        wanted = science[wanted]
    return wanted == found


def _is_term(
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    first: Mapping[str, Any],
    science: Mapping[str, Any],
) -> bool:
    """A term: start and stop as shares of the steps, its weight as a share of the first's."""
    if {"start", "stop"} & {*found} != {"start", "stop"} & {*wanted}:
        return False
    steps = science["train.steps"]
    moments = {key: in_steps(wanted[key], steps) for key in ("start", "stop") if key in wanted}
    if any(found[key] != moment for key, moment in moments.items()):
        return False
    if not math.isclose(found["weight"], wanted.get("share", 1) * first["weight"]):
        return False
    plain = {key: wanted[key] for key in ("scope", "balance_bsz")}
    return all(equals(value, found.get(key), science) for key, value in plain.items())


def all_else(science: Mapping[str, Any], named: Iterable[str]) -> dict[str, Any]:
    """What arms of one finding must share: all but the treatment, and its weight."""
    terms = science.get("terms")
    weight = terms[0]["weight"] if terms else science.get("loss.balance")
    apart = {*TREATMENT, *named, "balance.pass_bsz"}
    whole = {**science, "weight": weight}
    return {key: value for key, value in whole.items() if key not in apart}
