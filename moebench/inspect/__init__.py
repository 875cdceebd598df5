"""What routers do: in a run, from its record, and on a text, from a checkpoint."""

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moebench.catalogue import random_values
from moebench.errors import ConfigError, RecordError
from moebench.metrics.change import saturation
from moebench.protection import ROWS, check_files
from moebench.records import Record

if TYPE_CHECKING:  # it imports torch, which the record of a run does not need
    from moebench.evaluate import Checkpoint

DENSE = "is of a dense model, which has no routers to inspect"


@dataclass(frozen=True)
class Inspection:
    """Routers at one step, on the validation text of some domains.

    Attributes:
        name: of the run or checkpoint.
        about: lines that describe it.
        domains: their names.
        counts: [layers, domains, experts] assignments.
        top_k: experts of each token.
        metrics: by name, see docs/metrics.md.
        random: metric -> its value under random routing, if it is known.
        settled: step -> share of that step's experts that are those of the last evaluation.
        layers: names of the modules that hold the experts; empty for a run's.
    """

    name: str
    about: list[str]
    domains: list[str]
    counts: np.ndarray
    top_k: int
    metrics: Mapping[str, Any]
    random: Mapping[str, float] = field(default_factory=dict)
    settled: Mapping[int, float] = field(default_factory=dict)
    layers: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "domains": self.domains,
            "counts": self.counts.tolist(),
            "metrics": dict(self.metrics),
            "random": dict(self.random),
            "settled": {str(step): share for step, share in self.settled.items()},
            "layers": list(self.layers),
        }


def inspect_run(path: Path, step: int | None = None) -> Inspection:
    """A run at its last evaluation, or at the evaluation of a step.

    Raises:
        RecordError: if the run has no evaluation, or none at this step; if a file was changed.
    """
    record = Record(path)
    if not record.exists():
        raise RecordError(f"{path}: is not a run; moebench train makes one")
    steps = record.routing_steps()
    if not steps and record.config().get("model.moe") is False:
        raise RecordError(f"{path}: {DENSE}")
    if not steps:
        raise RecordError(f"{path}: has no evaluation yet")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        known = ", ".join(map(str, steps))
        raise RecordError(f"--step={step}: {path} has no evaluation there; it has {known}")
    routed = (f"routing/step-{at}.npz" for at in steps)
    check_files(record, "config.yaml", "manifest.json", ROWS, *routed)
    manifest, arrays = record.manifest(), record.routing(chosen, "counts", "probe_index")
    row = next((row for row in record.rows() if row["step"] == chosen), {})
    summary = record.summary() if record.is_done() and chosen == steps[-1] else {}
    metrics = {key: value for key, value in {**row, **summary}.items() if "/" in key}
    about = [f"step {chosen} of {record.config().get('train.steps')}, arm {manifest.get('arm')}"]
    probes = record.probes()
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
    """The names of the domains; numbers if the manifest does not name that many."""
    names = [str(name) for name in domains or ()]
    return names if len(names) == number else [str(index) for index in range(number)]


class Routed(NamedTuple):
    """The tokens of a text and their experts.

    Attributes:
        tokens: the text of each token. If several tokens encode a character, the last shows the
            character, and the others show their bytes in hexadecimal. Bytes that are no UTF-8
            are U+FFFD.
        experts: [layers][tokens][top_k], the likeliest first.
        num_experts: of a layer.
        note: what a user must know of them, in one line; "" if there is nothing.
    """

    tokens: list[str]
    experts: list[list[list[int]]]
    num_experts: int
    note: str = ""


def inspect_text(
    path: Path, text: str, step: int | None = None, domain: str | None = None
) -> Routed:
    """The experts of each token of a text, in a run's last checkpoint or that of a step.

    Args:
        domain: that the text is taken to be of, for runs that read domains.

    Raises:
        ConfigError: if the text is empty or not UTF-8, for an unknown domain, and for none where
            the run needs one.
        RecordError: if there is no such checkpoint, or the model is dense.
    """
    from moebench.evaluate import open_checkpoint

    if not text:
        raise ConfigError("--text: is empty; pass some text")
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise ConfigError("--text: is not valid UTF-8; pass text in that encoding") from None
    checkpoint = open_checkpoint(Record(path), step)
    tokens = checkpoint.tokenizer.encode(content).tolist()
    return routed_text(checkpoint, tokens, checkpoint.domain_number(domain))


def routed_text(checkpoint: "Checkpoint", tokens: Sequence[int], domain: int | None) -> Routed:
    """The experts of each token of a text, of a domain by its number.

    Raises RecordError if the model is dense.
    """
    import torch

    if not checkpoint.model.router_weights:
        raise RecordError(f"{checkpoint.record.path}: {DENSE}")
    with torch.no_grad():
        inputs = torch.tensor([[*tokens]], device=checkpoint.device)
        _, routing = checkpoint(inputs, None if domain is None else torch.tensor([domain]))
    return Routed(
        _texts([checkpoint.tokenizer.spelled([token]) for token in tokens]),
        routing.expert_index[:, 0, -len(tokens) :].tolist(),  # without a token of the domain
        routing.counts.shape[-1],
        checkpoint.note,
    )


def _texts(pieces: Sequence[bytes]) -> list[str]:
    """The text of each token by its bytes, as `Routed.tokens` has it."""
    decoder = getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(piece) or "".join(f"<{byte:02x}>" for byte in piece) for piece in pieces]
