"""Which runs are the same run: a hash over what can change a result, and nothing else.

Treatments that are one thing under several names get one identity: `scope=micro` is
`scope=global balance_bsz=<micro_bsz>`, a weight of 0 is `scope=none`, a shuffled pool of one
micro-batch is that micro-batch, and a single term that always acts is the key scope.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from moebench.config.check_method import default_of
from moebench.config.schema import (
    ALWAYS,
    NEVER,
    ExperimentConfig,
    TermConfig,
    canonical_group,
    group_of,
    in_steps,
    knobs,
)
from moebench.methods import LOSS, declared

LONGEST = 80  # characters of the label in the name of a run


# Keys that the treatment says in a canonical form.
SAID = (
    *("scope", "balance_bsz", "loss.balance", "loss.local"),
    *("balance.pass_bsz", "balance.decay", "balance.terms"),
    *("method.options", "method.plugin"),
)


def treatment(config: ExperimentConfig) -> list[dict[str, Any]]:
    """What is balanced over what, how strongly and when, in one canonical form.

    Returns:
        A table for each term that ever acts, in one order: `scope` (`group`, `shuffled` or
        `domain`), the `balance_bsz` of a scope with groups of a fixed size, its `weight` in the
        objective and, where it has them, `start`, `stop`, `ramp` (in steps) and `domains`.
    """
    if config.scope == "none":
        return []
    terms, local = config.balance.terms or [TermConfig()], config.loss.local
    found = [_canonical(config, term) for term in terms]
    if local:  # where there are no terms
        micro = _canonical(config, TermConfig(scope="micro", weight=local))
        if micro | {"weight": 0} == found[0] | {"weight": 0}:
            found = [_canonical(config, TermConfig(weight=1 + local))]
        else:
            found.append(micro)
    acting = [
        term for term in found if term["weight"] and (term.get("stop") != 0 or "ramp" in term)
    ]
    return sorted(acting, key=_place)


def _place(term: Mapping[str, Any]) -> tuple[Any, ...]:
    """Terms that begin earlier come first, of those the heaviest."""
    size = term.get("balance_bsz") or 0
    return term.get("start", 0), -term["weight"], term["scope"], size, json.dumps(term)


def _canonical(config: ExperimentConfig, term: TermConfig) -> dict[str, Any]:
    kind, size = canonical_group(config, *group_of(config, term))
    steps = config.train.steps
    start, stop = in_steps(term.start, steps), in_steps(term.stop, steps)
    schedule = {
        "start": start if start or term.ramp > 1 else None,
        "stop": stop if stop is not None and stop < steps else None,
    }
    moments = {key: value for key, value in schedule.items() if value is not None}
    found = {"scope": kind, "weight": config.loss.balance * term.weight, **moments}
    if size is not None:
        found["balance_bsz"] = size
    if moments and term.ramp > 1:  # over one step, a ramp is none
        found["ramp"] = term.ramp
    weights = {name: weight for name, weight in term.domains.items() if weight != 1}
    if weights:
        found["domains"] = dict(sorted(weights.items()))
    return found


def estimator(config: ExperimentConfig) -> dict[str, Any]:
    """What `balance.estimator` comes to for this treatment, with the values that it looks at.

    A prefix over logical passes that hold whole groups is those groups; a moving average that
    forgets at once is the last step.
    """
    balance = config.balance
    found: dict[str, Any] = {"balance.estimator": balance.estimator}
    if balance.estimator == "buffer":
        passes = balance.pass_bsz or config.micro_bsz
        groups = [term.get("balance_bsz") for term in treatment(config)]
        if all(size and passes % size == 0 for size in groups):
            return {"balance.estimator": "exact"}
        found["balance.pass_bsz"] = passes
    if balance.estimator == "ema":
        if balance.decay == 0:
            return {"balance.estimator": "stale"}
        found["balance.decay"] = balance.decay
    return found


def method_options(config: ExperimentConfig) -> dict[str, float]:
    """The options of the method that are not what they are where nothing sets them."""
    options = config.method.options
    known = declared(config.method.name).options if options else {}
    return {key: value for key, value in options.items() if value != default_of(config, known[key])}


def science(config: ExperimentConfig, content_hash: str) -> dict[str, Any]:
    """Every key that can change a result and is not at its neutral value, sorted by key.

    Args:
        config: complete, as `Composer.compose` returns it.
        content_hash: of the data and tokenizer.
    """
    keys = {
        key: value
        for key, each, value in knobs(config)
        if not key.startswith("run.")
        and key not in SAID
        and each.metadata["neutral"] is not NEVER
        and (each.metadata["neutral"] is ALWAYS or value != each.metadata["neutral"])
    }
    if options := method_options(config):
        keys["method.options"] = options
    if config.method.plugin:
        keys["method.plugin"] = config.method.plugin.rpartition("@")[2]  # its content, not its name
    terms = treatment(config)
    if not terms:
        keys = {key: value for key, value in keys.items() if not key.startswith("balance.")}
        keys["scope"] = "none"
    elif len(terms) == 1 and terms[0].keys() <= {"scope", "balance_bsz", "weight"}:
        [only] = terms
        keys |= {("loss.balance" if key == "weight" else key): only[key] for key in only}
    else:
        keys["terms"] = terms
    if terms:
        keys.pop("balance.estimator", None)
        keys |= {key: value for key, value in estimator(config).items() if value != "exact"}
    return dict(sorted((keys | {"data": content_hash}).items()))


def _digest(keys: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:10]


def run_hash(config: ExperimentConfig, content_hash: str) -> str:
    """Ten hexadecimal digits that two runs share only if they are the same run."""
    return _digest(science(config, content_hash))


def arm_hash(config: ExperimentConfig, content_hash: str) -> str:
    """The same without the seed: runs of one arm share it."""
    keys = science(config, content_hash)
    del keys["seed"]
    return _digest(keys)


def label(config: ExperimentConfig) -> str:
    """A short name of the arm: `micro`, `global-64`, `global + 0.01 micro from 200`, `none`, ...

    Names what is balanced over what and when, and the rarer parts of the treatment that are
    switched on. Two arms may share a label (they differ in a weight, say); their hashes differ.
    """
    terms, balance = treatment(config), config.balance
    name = " + ".join(term_label(config, term) for term in terms)
    if terms:
        found = estimator(config)
        if found["balance.estimator"] != "exact":
            values = [f"{value:g}" for value in found.values() if not isinstance(value, str)]
            name += f" {'='.join([found['balance.estimator'], *values])}"
        if balance.window_steps > 1:
            name += f" window={balance.window_steps}"
        for key, value, neutral in (
            ("layers", balance.layers, "mean"),
            ("uniform", balance.uniform, "1"),
            ("probs", balance.probs, "full"),
        ):
            if value != neutral:
                name += f" {key}={value}"
    if config.method.name != LOSS:
        own = [f"{key}={value:g}" for key, value in method_options(config).items()]
        name = " ".join([f"{name} +" * bool(name), config.method.name, *own]).strip()
    name = name or ("z-loss" if config.loss.z else "none")
    if config.data.homogeneity != 1:
        name += f" homogeneity={config.data.homogeneity:g}"
    if config.router.perturb:
        name += f" perturb={config.router.perturb:g}"
    return name


def term_label(config: ExperimentConfig, term: Mapping[str, Any]) -> str:
    """A term of the treatment in words, its weight as a multiple of the first one's."""
    first, size = treatment(config)[0]["weight"], term.get("balance_bsz", 0)
    name = term["scope"]
    if name == "group":
        named = {1: "sequence", config.micro_bsz: "micro", config.global_bsz: "global"}
        name = named.get(size, f"global-{size}")
    elif name == "shuffled" and size != config.global_bsz:
        name = f"shuffled-{size}"
    share = f"{term['weight'] / first:g}"
    words = [*([share] if share != "1" else []), name]
    words += [f"{domain}={weight:g}" for domain, weight in term.get("domains", {}).items()]
    for key, word in (("start", "from"), ("stop", "to"), ("ramp", "ramp")):
        if key in term:
            words.append(f"{word} {term[key]}")
    return " ".join(words)


def coefficients(config: ExperimentConfig) -> dict[str, float]:
    """What multiplies E * sum_i f_i P_i of one router in the objective, by term.

    With f summing to 1 and P the mean over the step's tokens, whatever the conventions for
    layers and top-k: so that weights compare with those of other systems.
    """
    balance, model = config.balance, config.model
    uniform = model.top_k if balance.uniform == "k" else 1
    layers = 1 if balance.layers == "sum" else model.num_layers
    return {
        term_label(config, term): term["weight"] * uniform / layers for term in treatment(config)
    }


def run_name(config: ExperimentConfig, content_hash: str) -> str:
    """The run's directory: `<slug>-<hash>`, safe as a file name on every system."""
    slug = re.sub(r"[^a-z0-9.]+", "-", label(config).lower()).strip("-.")[:LONGEST].strip("-.")
    return f"{slug}-s{config.seed}-{run_hash(config, content_hash)}"
