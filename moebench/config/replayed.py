"""The run that `router=replay` replays: found by its path, and compared with the config.

A config holds what the record of that run says of it (`router.recording`), so that an identity is
one of selections and not of a path.
"""

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moebench import selections
from moebench.config.knob import flat
from moebench.config.schema import ExperimentConfig, RouterConfig
from moebench.config.treatment import lookup, map_layers, moe_layers
from moebench.disk import expanded, read_json, reason
from moebench.errors import ConfigError
from moebench.yaml_files import read_yaml

# what decides which tokens a run reads, in which order, and the shape of what it selects
EQUAL = (
    *("seed", "seq_len", "micro_bsz", "global_bsz", "train.steps", "train.eval_every"),
    *("model.moe", "model.num_layers", "model.dense_layers", "model.num_experts", "model.top_k"),
    *("data.homogeneity", "data.sampling", "data.temperature", "data.weights"),
    *("data.domain_token", "data.heldout", "data.valid_sequences"),
)


def replays(config: ExperimentConfig) -> bool:
    """Whether a run replays the selections of another."""
    return config.router.map == "replay" and config.model.moe


def complete_replay(config: ExperimentConfig) -> ExperimentConfig:
    """The config with an absolute `router.replay` and what the run there says of itself.

    What a config says already stays, so that a finished run outlives the one that it replayed.

    Raises ConfigError for a path that names no run, or one whose selections do not fit.
    """
    router = config.router
    if router.replay is None:
        return replace(config, router=replace(router, recording={}))
    path = os.path.abspath(expanded(router.replay))
    if router.recording.get("run") != path:
        path = str(_found(path, config))
        router = replace(router, recording=recording_of(config, path))
    return replace(config, router=replace(router, replay=path))


def source_label(router: RouterConfig) -> str:
    """The arm of the run that is replayed."""
    return router.recording.get("arm", "")


def recording_of(config: ExperimentConfig, path: str) -> dict[str, str]:
    """What the record of a run says of its selections, as `router.recording` holds it.

    Raises ConfigError for selections that do not fit the config, or are not there.
    """
    subject = f"router.replay={path}"
    recorded = _config_of(Path(path))
    for key in _differing(config, recorded):
        raise ConfigError(
            f"{key}={_word(lookup(config, key))}: {subject} has selections for {key}="
            f"{_word(recorded[key])}; use that, or replay another run"
        )
    about = _about(Path(path), subject)
    if int(about["slots"]) != config.model.top_k and map_layers(config) < moe_layers(config):
        raise ConfigError(
            f"router.hash_layers={config.router.hash_layers}: {subject} has up to "
            f"{about['slots']} experts a token, and further layers model.top_k="
            f"{config.model.top_k}; leave out router.hash_layers"
        )
    return about


def _about(path: Path, subject: str) -> dict[str, str]:
    """Run, arm, hashes and slots of a finished run with recorded selections."""
    try:
        summary, manifest = read_json(path / "summary.json"), read_json(path / "manifest.json")
        sealed = summary["files"]
        files = {name: sealed[name] for name in sealed if name.startswith(f"{selections.FOLDER}/")}
        about = {key: str(manifest[key]) for key in ("arm", "arm_hash")}
        if not files:
            raise ConfigError(
                f"{subject}: its selections were not recorded; train it again with "
                "run.record_selections=true --force"
            )
        slots = selections.read_header(path, "train").shape[-1]
    except FileNotFoundError:
        raise ConfigError(
            f"{subject}: is not finished; finish it with moebench train --resume"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{subject}: its record cannot be read ({reason(error)}); see moebench verify"
        ) from None
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return {"run": str(path), **about, "selections": digest, "slots": str(slots)}


def _differing(config: ExperimentConfig, recorded: Mapping[str, Any]) -> list[str]:
    """The keys of EQUAL in which a config is not as recorded."""
    wanted = {key: lookup(config, key) for key in EQUAL}
    return [key for key, value in wanted.items() if recorded.get(key, value) != value]


def _found(given: str, config: ExperimentConfig) -> Path:
    """The run at a path; of several that a pattern names, the one that fits the config."""
    if _is_run(given):
        return Path(given)
    runs = {
        Path(path): _config_of(Path(path)) for path in sorted(glob.glob(given)) if _is_run(path)
    }
    seed = config.seed
    of_seed = {path: found for path, found in runs.items() if found.get("seed") == seed}
    fitting = [
        path
        for path, found in of_seed.items()
        if (path / selections.FOLDER).is_dir() and not _differing(config, found)
    ]
    for candidates in (fitting, [*of_seed]):
        if len(candidates) == 1:
            return candidates[0]
    if not runs:
        raise ConfigError(
            f"router.replay={given}: is not a run; name a run with recorded selections, or a "
            "pattern such as 'runs/global-s*', of which each seed takes its own"
        )
    what = f"{len(fitting) or 'no'} run{'s' * (len(fitting) != 1)} of seed={seed}"
    raise ConfigError(
        f"router.replay={given}: names {what} with selections that fit; name one, or train it with "
        "run.record_selections=true"
    )


def _is_run(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "config.yaml"))


def _config_of(path: Path) -> dict[str, Any]:
    """The config of a record, dotted key -> value."""
    try:
        found = read_yaml(path / "config.yaml")
        if not isinstance(found, dict):
            raise ValueError("holds no config")
        # tables that are values stay whole
        return dict(flat(found)) | {"data.weights": found.get("data", {}).get("weights", {})}
    except Exception as error:  # YAML raises many kinds
        raise ConfigError(
            f"router.replay={path}: its config.yaml cannot be read ({reason(error)}); name another "
            "run"
        ) from None


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
