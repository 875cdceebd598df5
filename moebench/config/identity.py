"""Which runs are the same run: a hash over what can change a result, and nothing else.

Treatments that are one thing under several names get one identity: `scope=micro` is
`scope=global balance_bsz=<micro_bsz>`, a weight of 0 is `scope=none`, and a shuffled pool of one
micro-batch is that micro-batch.
"""

import hashlib
import json
import re
from typing import Any

from moebench.config.schema import ALWAYS, NEVER, ExperimentConfig, knobs


def treatment(config: ExperimentConfig) -> dict[str, Any]:
    """What is balanced over what, in one canonical form.

    Returns:
        `scope` (`none`, `group`, `shuffled` or `domain`) and, for a scope with groups of a fixed
        size, `balance_bsz` in sequences.
    """
    size = config.balance_bsz
    if config.scope == "none" or config.loss.balance == 0:
        return {"scope": "none"}
    if config.scope == "domain":
        return {"scope": "domain"}
    if config.scope == "shuffled" and size != config.micro_bsz:
        return {"scope": "shuffled", "balance_bsz": size}
    return {"scope": "group", "balance_bsz": size}


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
        and each.metadata["neutral"] is not NEVER
        and (each.metadata["neutral"] is ALWAYS or value != each.metadata["neutral"])
    }
    del keys["scope"], keys["balance_bsz"]
    canonical = treatment(config)
    if canonical["scope"] == "none":
        for weight in ("loss.balance", "loss.local"):
            keys.pop(weight, None)
    return dict(sorted((keys | canonical | {"data": content_hash}).items()))


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
    """A short name of the arm: `micro`, `global`, `global-64`, `shuffled`, `none`, ...

    Names what is balanced over what, and the rarer parts of the treatment that are switched on. Two
    arms may share a label (they differ in a weight, say); their hashes differ.
    """
    canonical = treatment(config)
    scope, size = canonical["scope"], canonical.get("balance_bsz", 0)
    if scope == "group":
        named = {1: "sequence", config.micro_bsz: "micro", config.global_bsz: "global"}
        name = named.get(size, f"global-{size}")
    elif scope == "shuffled" and size != config.global_bsz:
        name = f"shuffled-{size}"
    else:
        name = scope
    if scope != "none" and config.loss.local:
        name += f" local={config.loss.local:g}"
    if config.data.homogeneity != 1:
        name += f" homogeneity={config.data.homogeneity:g}"
    if config.router.perturb:
        name += f" perturb={config.router.perturb:g}"
    return name


def run_name(config: ExperimentConfig, content_hash: str) -> str:
    """The run's directory: `<slug>-<hash>`, safe as a file name on every system."""
    slug = re.sub(r"[^a-z0-9.]+", "-", f"{label(config)} s{config.seed}".lower()).strip("-.")
    return f"{slug}-{run_hash(config, content_hash)}"
