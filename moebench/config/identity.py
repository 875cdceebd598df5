"""Which runs are the same run: a hash over what can change a result, and the names made from it.

Here alone, consecutive groups of whatever size are called `group`, as the first records called
them: the name is part of every hash.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moebench import scopes
from moebench.config.knob import HASHED, NOT_HASHED, knobs
from moebench.config.replayed import source_label
from moebench.config.schema import RouterConfig
from moebench.config.treatment import (
    BalanceTerm,
    EstimatorChoice,
    Meaning,
    Treatment,
    in_steps,
    map_layers,
    moe_layers,
    sizes_of,
)
from moebench.methods import LOSS, declared
from moebench.registry import content_of
from moebench.scopes import GLOBAL

# put in words otherwise; or not at all, as a learning rate is not: arms that share it need no word
OTHERWISE = ("gate", "renormalize", "perturb", "map", "hash_layers", "replay", "recording", "init")
LONGEST = 80  # characters of the label in the name of a run
GROUP = "group"  # GLOBAL as it is hashed
REPLAY = "router.replay"
NUMERICS = 3  # raised when the same run gets other bits; those of 3 have oneDNN's products on a CPU

# Keys that are hashed in the canonical form of the treatment.
CANONICAL = (
    *("scope", "balance_bsz", "loss.balance", "loss.local"),
    *("balance.pass_bsz", "balance.decay", "balance.terms", "balance.plugins", "balance.counts"),
    *("method.options", "method.plugin"),
    *("router.gate", "router.renormalize", "router.group_bsz", "router.full_at"),
    *("router.prune_every", "router.drop", "router.hash_layers", "router.group_worth"),
)


def science(config: Meaning, content_hash: str) -> dict[str, Any]:
    """Every key that can change a result and is not at its neutral value, sorted by key.

    With the hash of the data, and the version of the arithmetic.

    Args:
        config: complete, as `Composer.compose` returns it.
        content_hash: of the data and tokenizer.
    """
    treatment = Treatment.of(config)
    config = treatment.config
    keys = {
        key: value
        for key, field, value in knobs(config)
        if not key.startswith("run.")
        and key not in CANONICAL
        and field.metadata["neutral"] is not NOT_HASHED
        and (field.metadata["neutral"] is HASHED or value != field.metadata["neutral"])
    }
    keys |= _router_keys(treatment)
    if config.model.weights:
        keys["model.init"] = config.model.weights.get("hash")
    if not moe_layers(config):
        keys = {key: value for key, value in keys.items() if not key.startswith("router.")}
        keys.pop("model.dense_layers", None)
        keys.pop("optim.router_lr", None)
    if treatment.method_options:
        keys["method.options"] = dict(treatment.method_options)
    if config.method.plugin:
        keys["method.plugin"] = content_of(config.method.plugin)
    if treatment.terms:
        keys.pop("balance.estimator", None)
        keys |= _term_keys(treatment) | _estimator_keys(treatment.estimator)
    else:
        keys = {key: value for key, value in keys.items() if not key.startswith("balance.")}
        keys["scope"] = scopes.NONE
    if counts := _told_counts(treatment):
        keys["balance.counts"] = counts
    return dict(sorted((keys | {"data": content_hash, "numerics": NUMERICS}).items()))


def _told_counts(treatment: Treatment) -> str | None:
    """What f counts; None where a run that does not say it counts the same.

    Before the key came, f counted the top-k of the scores without a bias, within the best groups,
    and for a sparsemax gate with a bias also experts that had no share at all.
    """
    config = treatment.config
    router, offsets = config.router, declared(config.method.name).offsets
    usual = "grouped" if router.top_groups < router.expert_groups else "scores"
    same = treatment.counts == usual and not (router.gate == "sparsemax" and offsets)
    return None if same or not moe_layers(config) else treatment.counts


def _router_keys(treatment: Treatment) -> dict[str, Any]:
    router, keys = treatment.config.router, {}
    if treatment.gate != "softmax":
        keys["router.gate"] = treatment.gate
    if not treatment.renormalize:
        keys["router.renormalize"] = False
    if treatment.drop != "probability":
        keys["router.drop"] = treatment.drop
    if treatment.group_worth != "top_two":
        keys["router.group_worth"] = treatment.group_worth
    if treatment.router_bsz:
        keys["router.group_bsz"] = treatment.router_bsz
    if 0 < map_layers(treatment.config) < moe_layers(treatment.config):
        keys["router.hash_layers"] = map_layers(treatment.config)
    if router.recording:
        keys[REPLAY] = router.recording.get("selections")
    if router.start_experts is not None:
        keys["router.full_at"] = in_steps(router.full_at, treatment.config.train.steps)
    if router.prune_below:
        keys["router.prune_every"] = router.prune_every
    return keys


def _term_keys(treatment: Treatment) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if len(treatment.terms) == 1 and treatment.terms[0].always:
        keys = hashed_term(treatment.terms[0])
        keys["loss.balance"] = keys.pop("weight")
    else:
        keys["terms"] = [hashed_term(term) for term in treatment.terms]
    if treatment.plugins:
        keys["balance.plugins"] = {
            scope: content_of(plugin) for scope, plugin in treatment.plugins.items()
        }
    return keys


def hashed_term(term: BalanceTerm) -> dict[str, Any]:
    """A term as records and hashes hold it: without what is at its neutral value."""
    keys = {
        "scope": GROUP if term.scope == GLOBAL else term.scope,
        "weight": term.weight,
        "start": term.start,
        "stop": term.stop,
        "balance_bsz": term.balance_bsz,
        "ramp": term.ramp or None,
        "domains": dict(term.domains) or None,
    }
    return {key: value for key, value in keys.items() if value is not None}


def scope_of(science: Mapping[str, Any]) -> str | None:
    """The scope in a record's science as it is typed: `micro`, `global`, `shuffled`, `none`."""
    scope = science.get("scope")
    if scope is None:
        return None
    sizes = {key: science.get(key) for key in ("micro_bsz", "global_bsz")}
    return scopes.title(GLOBAL if scope == GROUP else scope, science.get("balance_bsz"), sizes)[0]


def _estimator_keys(estimator: EstimatorChoice) -> dict[str, Any]:
    keys = {
        "balance.estimator": estimator.name,
        "balance.pass_bsz": estimator.pass_bsz,
        "balance.decay": estimator.decay,
    }
    return {key: value for key, value in keys.items() if value not in (None, "exact")}


def _digest(keys: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:10]


def run_hash(config: Meaning, content_hash: str) -> str:
    """Ten hexadecimal digits that two runs share only if they are the same run."""
    return _digest(science(config, content_hash))


def arm_hash(config: Meaning, content_hash: str) -> str:
    """The same without the seed: runs of one arm share it."""
    keys = science(config, content_hash)
    del keys["seed"]
    if replay := keys.get(REPLAY):  # each seed replays a run of its own
        keys[REPLAY] = Treatment.of(config).config.router.recording.get("arm_hash", replay)
    return _digest(keys)


def run_name(config: Meaning, content_hash: str) -> str:
    """The run's directory: `<slug>-s<seed>-<hash>`, safe as a file name on every system."""
    treatment = Treatment.of(config)
    slug = re.sub(r"[^a-z0-9.]+", "-", label(treatment).lower()).strip("-.")
    slug = slug[:LONGEST].strip("-.")
    return f"{slug}-s{treatment.config.seed}-{run_hash(treatment, content_hash)}"


def label(config: Meaning) -> str:
    """A short name of the arm: `micro`, `global-64`, `global + 0.01 micro from 200`, `none`, ...

    It names what is balanced over what and when, and the rarer parts of the treatment that are
    switched on. Two arms may share a label (they differ in a weight, say); their hashes differ.
    """
    treatment, parts = Treatment.of(config), []
    config = treatment.config
    if treatment.terms:
        terms = " + ".join(term_label(treatment, term) for term in treatment.terms)
        parts.append(" ".join([terms, *_convention_words(treatment)]))
    if config.method.name != LOSS:
        options = [f"{key}={value:g}" for key, value in treatment.method_options.items()]
        parts.append(" ".join([config.method.name, *options]))
    if not parts and map_layers(config):
        name = ""  # the map says all
    else:
        name = " + ".join(parts) or ("z-loss" if config.loss.z else "none")
    words = [name, *_router_words(treatment)] if config.model.moe else ["dense"]
    if config.data.homogeneity != 1:
        words.append(f"homogeneity={config.data.homogeneity:g}")
    if config.router.perturb:
        words.append(f"perturb={config.router.perturb:g}")
    return " ".join(filter(None, words))


def _convention_words(treatment: Treatment) -> list[str]:
    """The estimator and the conventions of the balance loss, where they are not the usual ones."""
    balance, estimator, words = treatment.config.balance, treatment.estimator, []
    if estimator.name != "exact":
        value = estimator.decay if estimator.pass_bsz is None else estimator.pass_bsz
        words.append(estimator.name if value is None else f"{estimator.name}={value:g}")
    if balance.window_steps > 1:
        words.append(f"window={balance.window_steps}")
    for key, value, usual in (
        ("layers", balance.layers, "mean"),
        ("uniform", balance.uniform, "1"),
        ("probs", balance.probs, "full"),
    ):
        if value != usual:
            words.append(f"{key}={value}")
    if counts := _told_counts(treatment):
        words.append(f"counts={counts}")
    return words


def _router_words(treatment: Treatment) -> list[str]:
    config = treatment.config
    words = [_map_word(config.router)] if map_layers(config) else []
    if 0 < map_layers(config) < moe_layers(config):
        words.append(f"hash_layers={map_layers(config)}")
    words += [treatment.gate] if treatment.gate != "softmax" else []
    canonical = replace(config.router, drop=treatment.drop, group_worth=treatment.group_worth)
    for key, field, value in knobs(canonical):
        neutral = field.metadata["neutral"]
        shown = key not in OTHERWISE and value != neutral
        if shown and neutral is not HASHED:
            words.append(key if value is True else f"{key}={value}")
    for key in ("dense_layers", "zero_experts"):
        if value := getattr(config.model, key):
            words.append(f"{key}={value}")
    return words


def _map_word(router: RouterConfig) -> str:
    return f"replay ({source_label(router)})" if router.map == "replay" else router.map


def term_label(treatment: Treatment, term: BalanceTerm) -> str:
    """A term in words, its weight as a multiple of the first one's."""
    share = f"{term.weight / treatment.terms[0].weight:g}"
    words = [] if share == "1" else [share]
    words.append(scopes.label(term.scope, term.balance_bsz, sizes_of(treatment.config)))
    words += [f"{domain}={weight:g}" for domain, weight in term.domains]
    for word, moment in (("from", term.start), ("to", term.stop), ("ramp", term.ramp or None)):
        if moment is not None:
            words.append(f"{word} {moment}")
    return " ".join(words)


def coefficients(config: Meaning) -> dict[str, float]:
    """`Treatment.coefficients`, by the label of each term."""
    treatment = Treatment.of(config)
    labels = (term_label(treatment, term) for term in treatment.terms)
    return dict(zip(labels, treatment.coefficients, strict=True))
