"""Runs of one seed that are no pairs: they saw other sequences, or began from other weights."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moebench.records import printable

BATCHES = ("micro_bsz", "data.sampling", "data.temperature", "data.weights", "data.heldout")
"""Keys that decide which sequences a step sees, beside those in which all runs of a table agree."""
KIND = ("router.", "method", "model.")
"""Starts of the keys that make another model of the same weights, or other weights."""
START_TOLERANCE = 1e-3  # nats; rounding gives 1e-6, other initial weights 1e-2


def other_batches(
    sciences: Mapping[str, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    """Arms whose runs see other sequences than the baseline's of the same seed.

    They are recognised by their keys, and by the sequences that the first steps of runs held.

    Args:
        sciences: the keys of each arm, by its name; the baseline first.
        runs: rows of the frame.
    """
    (baseline, base), *others = sciences.items()
    explained = set()
    for name, science in others:
        differ = [key for key in BATCHES if science.get(key) != base.get(key)]
        if differ:
            values = ", ".join(
                printable(
                    f"{key} {science.get(key, 'at its default')}, there "
                    f"{base.get(key, 'at its default')}"
                )
                for key in differ
            )
            explained.add(name)
            yield f"{name} and {baseline} are no pairs: they see other batches ({values})."
    first: dict[int, Mapping[str, Any]] = {}
    for run in runs:
        if not run["first_sequences"] or run["arm"] in explained:
            continue
        partner = first.setdefault(run["seed"], run)
        if run["first_sequences"] != partner["first_sequences"]:
            names = f"{run['run']} and {partner['run']}"
            yield f"{names} are no pair: their first steps hold other sequences."


def other_starts(runs: Sequence[Mapping[str, Any]], starts: Mapping[str, float]) -> Iterable[str]:
    """Runs of one seed whose nats before the first step differ without a key that explains it.

    Arms of a seed share initial weights, so before training they are one model, unless a router
    is perturbed, or the model or its router is of another kind. Rounding moves the nats by far
    less than START_TOLERANCE.

    Args:
        runs: rows of the frame.
        starts: nats before the first step, by the name of the run.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        acting = {k: v for k, v in run["science"].items() if k.startswith(KIND)}
        if run["run"] not in starts or "router.perturb" in acting:
            continue
        partner = first.setdefault(repr((run["seed"], sorted(acting.items(), key=str))), run)
        theirs, ours = starts[partner["run"]], starts[run["run"]]
        if abs(theirs - ours) > START_TOLERANCE:
            yield (
                f"{run['run']} and {partner['run']} are no pair: they did not begin from equal "
                f"weights (nats before the first step {ours:.4f} and {theirs:.4f})."
            )
