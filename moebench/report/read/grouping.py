"""Which runs may be compared: their tables, and a label for each arm that is unique within one.

A *table* holds runs that are equal in data, sizes, steps, precision, model, class of device and
version of moebench. Nothing is averaged across tables.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moebench.records import printable
from moebench.report.read.conditions import as_typed, value_of

COMPARABLE = (
    "data",
    "seq_len",
    "global_bsz",
    "train.steps",
    "train.precision",
    "data.valid_sequences",
)  # and every model.* key but these, whose arms are arms among others
OF_ARMS = ("model.moe", "model.zero_experts")
ABSENT = "absent"  # stands for the value of a key that an arm leaves at its neutral value


def comparable(science: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that runs of one table share, as far as their configs decide."""
    keys = {key: science.get(key) for key in COMPARABLE}
    of_model = (key for key in science if key.startswith("model.") and key not in OF_ARMS)
    return keys | {key: science[key] for key in of_model}


def number_tables(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Set `table` in each row, and return the keys in which each table's runs are equal.

    Tables come in order of their values of `by`, then of most finished runs.

    Args:
        rows: one a run.
        by: keys in which the runs of a table are equal, too.
    """
    groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for row in rows:
        keys = comparable(row["science"])
        keys |= {"device": row["device"], "moebench": row["made_with"].get("moebench", "?")}
        keys |= {key: value_of(row, key) for key in by}
        groups.setdefault(json.dumps(keys, sort_keys=True), (keys, []))[1].append(row)

    def order(group: tuple[dict[str, Any], list[dict[str, Any]]]) -> tuple[Any, ...]:
        keys, members = group
        values = [keys[key] for key in by]
        ranks = [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in values]
        return (*ranks, -sum(row["state"] == "done" for row in members))

    ordered = sorted(groups.values(), key=order)
    for index, (_, members) in enumerate(ordered):
        for row in members:
            row["table"] = index
    return tuple(keys for keys, _ in ordered)


def make_labels_unique(rows: Sequence[dict[str, Any]]) -> None:
    """Append the keys in which they differ to labels that arms of one table share."""
    sharing: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        arms = sharing.setdefault((row["table"], row["arm"]), {})
        arms[row["arm_hash"]] = {k: v for k, v in row["science"].items() if k != "seed"}
    labels = {key: _labels(key[1], arms) for key, arms in sharing.items()}
    for row in rows:
        row["arm"] = labels[row["table"], row["arm"]][row["arm_hash"]]


def _labels(shared: str, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A label for each arm hash; with the hash itself where all keys are equal."""
    if len(arms) == 1:
        return dict.fromkeys(arms, shared)
    keys = sorted(set().union(*arms.values()))
    differing = [
        key for key in keys if len({json.dumps(arm.get(key, ABSENT)) for arm in arms.values()}) > 1
    ]
    labels = {
        arm_hash: " ".join(
            [shared, *(f"{key}={as_typed(arm[key])}" for key in differing if key in arm)]
        )
        for arm_hash, arm in arms.items()
    }
    unique = len(set(labels.values())) == len(labels)
    return {
        arm_hash: printable(label if unique else f"{label} ({arm_hash})")
        for arm_hash, label in labels.items()
    }
