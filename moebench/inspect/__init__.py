"""What routers do, to be looked at: of a run from its record, of a text from a checkpoint."""

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moebench.catalogue import random_values
from moebench.errors import ConfigError, RecordError
from moebench.metrics.change import saturation
from moebench.records import Record

DENSE = "is of a dense model, which has no routers to look at"


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
    if not steps and record.config().get("model.moe") is False:
        raise RecordError(f"{path}: {DENSE}")
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
    top_k = arrays["probe_index"].shape[-1]
    return Inspection(
        name=str(path),
        about=about,
        domains=_names(manifest.get("domains"), arrays["counts"].shape[1]),
        counts=arrays["counts"],
        top_k=top_k,
        metrics=metrics,
        random=random_values(manifest, arrays["counts"].shape[2], top_k),
        settled=saturation(probes),
    )


def _names(domains: Any, number: int) -> list[str]:
    known = [str(each) for each in domains or ()]
    return known if len(known) == number else [str(each) for each in range(number)]


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
    if not checkpoint.model.router_weights:
        raise RecordError(f"{path}: {DENSE}")
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
