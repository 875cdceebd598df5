"""Which arms can be trained in one stack: those that differ only in these keys."""

import json
from collections.abc import Mapping
from typing import Any

from moebench.config.compose import from_dict
from moebench.config.knob import knobs
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import Treatment
from moebench.methods import declared

# What arms of one stack may differ in: it changes neither the shape of a step nor the model's code.
# A name that ends in a dot stands for all keys below it.
STACKABLE = (
    *("scope", "balance_bsz", "micro_bsz", "seed"),
    *("loss.", "balance.", "optim."),
    *("router.init", "router.perturb", "train.eval_every", "router.replay", "router.recording"),
    *("model.init", "model.weights"),
    *("data.homogeneity", "data.sampling", "data.temperature", "data.weights", "data.max_epochs"),
)


def stack_key(config: ExperimentConfig) -> tuple[tuple[str, str], ...]:
    """The key that arms of one stack share; unique for a method that cannot be stacked."""
    if not declared(config.method.name).stackable:
        return (("alone", repr(config)),)
    counts = "counts", Treatment.of(config).counts  # the model computes what f counts
    slots = "slots", config.router.recording.get("slots", "")  # of a run that is replayed
    return (
        counts,
        slots,
        *(
            # maps of whatever kind are arguments of one shape
            (key, repr(value not in ("none", "replay") or value if key == "router.map" else value))
            for key, _, value in knobs(config)
            if not any(key == own or (own[-1] == "." and key.startswith(own)) for own in STACKABLE)
        ),
    )


_KEYS: dict[str, tuple[tuple[str, str], ...]] = {}


def stack_key_of(nested: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The `stack_key` of a config as `to_dict` gives it; fast for configs that differ in weights.

    A sweep asks for thousands of them.
    """
    if not declared(nested["method"]["name"]).stackable:
        return (("alone", json.dumps(nested)),)
    text = json.dumps({**nested, "seed": None, "loss": None, "optim": None})
    if text not in _KEYS:
        _KEYS[text] = stack_key(from_dict(nested))
    return _KEYS[text]
