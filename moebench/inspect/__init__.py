"""What routers do, to be looked at: of a run from its record, of a text from a checkpoint."""

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moebench.errors import ConfigError, RecordError
from moebench.metrics.change import saturation
from moebench.records import Record


@dataclass(frozen=True)
class Inspection:
    """Routers at some moment, on the validation text of some domains.

    Attributes:
        name: what they are of.
        about: lines that say more.
        domains: their names.
        counts: [layers, domains, experts] assignments.
        top_k: experts of each token.
        metrics: by name, see docs/metrics.md.
        random: of some metrics, the value under random routing.
        settled: step -> share of the experts of then that are those of the last evaluation.
    """

    name: str
    about: list[str]
    domains: list[str]
    counts: np.ndarray
    top_k: int
    metrics: Mapping[str, Any]
    random: Mapping[str, float] = field(default_factory=dict)
    settled: Mapping[int, float] = field(default_factory=dict)

    def shares(self) -> np.ndarray:
        """[layers, domains, experts] of each domain's assignments, rows summing to 1."""
        total = self.counts.sum(-1, keepdims=True)
        empty = np.zeros(self.counts.shape)
        return np.divide(self.counts, total, out=empty, where=total > 0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "domains": self.domains,
            "counts": self.counts.tolist(),
            "metrics": dict(self.metrics),
            "random": dict(self.random),
            "settled": {str(step): each for step, each in self.settled.items()},
        }


def inspect_run(path: Path, step: int | None = None) -> Inspection:
    """A run at its last evaluation, or at that of a step.

    Raises RecordError for a run without evaluations, or without that one.
    """
    record = Record(path)
    if not record.exists():
        raise RecordError(f"{path}: is no run; moebench train makes one")
    steps = record.routing_steps()
    if not steps:
        raise RecordError(f"{path}: has no evaluation yet")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        known = ", ".join(map(str, steps))
        raise RecordError(f"--step={step}: {path} has no evaluation there; it has {known}")
    manifest, arrays = record.manifest(), record.routing(chosen)
    row = next((each for each in record.rows() if each["step"] == chosen), {})
    whole = record.summary() if record.is_done() and chosen == steps[-1] else {}
    metrics = {key: value for key, value in {**row, **whole}.items() if "/" in key}
    about = [f"step {chosen} of {record.config().get('train.steps')}, arm {manifest.get('arm')}"]
    probes = {each: record.routing(each)["probe_index"] for each in steps}
    return Inspection(
        name=str(path),
        about=about,
        domains=_names(manifest.get("domains"), arrays["counts"].shape[1]),
        counts=arrays["counts"],
        top_k=arrays["probe_index"].shape[-1],
        metrics=metrics,
        random=_random(manifest, arrays),
        settled=saturation(probes),
    )


def _names(domains: Any, number: int) -> list[str]:
    known = [str(each) for each in domains or ()]
    return known if len(known) == number else [str(each) for each in range(number)]


def _random(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    experts, top_k = arrays["counts"].shape[2], arrays["probe_index"].shape[-1]
    loads = manifest.get("random_load") or {}
    found = {
        f"load/max_vio_{window}": value
        for window, value in (manifest.get("random_max_vio") or {}).items()
    }
    for name in ("cv", "entropy", "gini", "dead_experts"):
        found[f"load/{name}"] = loads.get("batch", {}).get(name)
    found["load/dead_experts_global"] = loads.get("global", {}).get("dead_experts")
    found["load/drop_rate"] = loads.get("micro", {}).get("drop_rate")
    for key in ("ep/slowdown", "ep/slowdown_greedy"):  # no earlier load foretells a random one
        found[key] = manifest.get("random_slowdown")
    return {key: each for key, each in found.items() if each is not None} | by_chance(
        experts, top_k
    )


def by_chance(experts: int, top_k: int) -> dict[str, float]:
    """What random routing gives whatever the number of tokens."""
    return {
        "specialization/domain": 0.0,
        "specialization/domain_given_token": 0.0,
        "specialization/largest_share": top_k / experts,
        "specialization/vocabulary": top_k / experts,
        "specialization/coactivation": (top_k - 1) / (experts - 1) if experts > 1 else 0.0,
        "router/topk_mass": top_k / experts,
        "router/saturation": top_k / experts,
    }


class Routed(NamedTuple):
    """A text and where its tokens go.

    Attributes:
        tokens: the text of each; of a character that several tokens make up, the last shows it and
            the others their bytes in hexadecimal.
        experts: [layers][tokens][top_k], the likeliest first.
        num_experts: of a layer.
    """

    tokens: list[str]
    experts: list[list[list[int]]]
    num_experts: int


def inspect_text(path: Path, text: str, step: int | None = None) -> Routed:
    """Which experts each token of a text takes, in a checkpoint of a run."""
    import torch

    from moebench.evaluate import open_checkpoint

    if not text:
        raise ConfigError("--text: is empty; give some words")
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise ConfigError("--text: is no UTF-8; give text in that encoding") from None
    checkpoint = open_checkpoint(Record(path), step)
    tokens = checkpoint.tokenizer.encode(content)
    with torch.no_grad():
        given = torch.tensor(tokens.astype(np.int64), device=checkpoint.device)
        _, routing = checkpoint(given[None])
    return Routed(
        _spelled(content, [checkpoint.tokenizer.bytes_in(each) for each in tokens]),
        routing.expert_index[:, 0].tolist(),
        routing.counts.shape[-1],
    )


def _spelled(text: bytes, sizes: Sequence[int]) -> list[str]:
    """The text cut into pieces of some bytes, as `Routed.tokens`."""
    decoder = getincrementaldecoder("utf-8")()
    ends = np.cumsum(sizes).tolist()
    pieces = [text[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return [decoder.decode(piece) or "".join(f"<{byte:02x}>" for byte in piece) for piece in pieces]
