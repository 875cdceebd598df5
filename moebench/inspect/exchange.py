"""A run with the experts that another run selected for the same text: what is in its weights?"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moebench.data.batches import validation
from moebench.disk import reason
from moebench.errors import ConfigError, RecordError
from moebench.evaluate import Checkpoint, open_checkpoint
from moebench.metrics.evaluation import probed
from moebench.protection import check_files
from moebench.records import Record
from moebench.selections import FOLDER, entries_of, path_of, read_entry

# what decides the text of an evaluation, and the shape of what is selected for it
EQUAL = (
    *("seq_len", "data.valid_sequences", "data.domain_token", "model.moe", "model.num_layers"),
    *("model.dense_layers", "model.num_experts"),
)


class Exchange(NamedTuple):
    """Nats a token of one text with a run's own experts, and with those of another run.

    Attributes:
        run, other: their directories.
        step: of the checkpoint that is read.
        text: `valid`, or `probe`, the few validation sequences whose experts every run records.
        sequences: of that text.
        own, replayed: nats a token with the experts of the run, and of the other.
        difference: `replayed` minus `own`.
        error: standard error of the difference, over sequences; None for a single one.
        same: share of the assignments that both runs make.
    """

    run: str
    other: str
    step: int
    text: str
    sequences: int
    own: float
    replayed: float
    difference: float
    error: float | None
    same: float


@torch.no_grad()
def exchange(path: Path, other: Path, step: int | None = None) -> Exchange:
    """A run's last checkpoint, or that of a step, with the experts of another's last evaluation.

    Raises:
        ConfigError: if the runs are of other text or shapes.
        RecordError: if a run has no checkpoint or evaluation, or a file is damaged.
    """
    checkpoint, record = open_checkpoint(Record(path), step), Record(other)
    _check(checkpoint, record)
    text, index = _selections(record)
    config, corpus = checkpoint.config, checkpoint.corpus
    batch = validation(
        corpus, "test", sequences=config.data.valid_sequences, seq_len=config.seq_len
    )
    rows = slice(None) if text == "valid" else probed(len(batch.domain))
    tokens, domain = (torch.from_numpy(each[rows]).to(checkpoint.device) for each in batch)
    targets = tokens[:, 1:]
    logits, routing = checkpoint(tokens[:, :-1], domain)
    own = _nats(logits, targets)
    if index.shape[:3] != routing.expert_index.shape[:3] or index.max() >= routing.counts.shape[-1]:
        raise RecordError(f"--replay={other}: its selections are damaged; see moebench verify")
    forced = torch.from_numpy(index).to(checkpoint.device).long()
    if bool((forced < 0).any()):
        raise ConfigError(
            f"--replay={other}: gives some tokens fewer experts than others; name another run"
        )
    logits, _ = checkpoint(tokens[:, :-1], domain, forced)
    replayed = _nats(logits, targets)
    apart = replayed - own
    several = len(apart) > 1
    both = (routing.expert_index[..., :, None] == forced[..., None, :]).any(-1)
    return Exchange(
        run=str(path),
        other=str(other),
        step=checkpoint.step,
        text=text,
        sequences=len(apart),
        own=float(own.mean()),
        replayed=float(replayed.mean()),
        difference=float(apart.mean()),
        error=float(apart.std()) / math.sqrt(len(apart)) if several else None,
        same=float(both.double().mean()),
    )


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """[sequences] mean cross-entropy of each sequence, in fp64."""
    nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return nats.double().mean(1)


def _check(checkpoint: Checkpoint, other: Record) -> None:
    """Raise an error unless the other run routed the same text with as many experts."""
    if not other.exists():
        raise RecordError(f"--replay={other.path}: is not a run; name one")
    if not other.routing_steps():
        raise RecordError(f"--replay={other.path}: has no evaluation of routers yet")
    check_files(other, "config.yaml", "manifest.json")
    mine, theirs = checkpoint.record.config(), other.config()
    for key in EQUAL:
        if mine.get(key) != theirs.get(key):
            raise ConfigError(
                f"--replay={other.path}: has {key}={theirs.get(key)}, and {checkpoint.record.path} "
                f"has {mine.get(key)}; name a run with the same"
            )
    text, wanted = (
        record.manifest().get("data", {}).get("content_hash", "")
        for record in (other, checkpoint.record)
    )
    if text != wanted:
        raise ConfigError(
            f"--replay={other.path}: was trained on data {text[:10]}, and {checkpoint.record.path} "
            f"on {wanted[:10]}; name a run on the same text"
        )


def _selections(record: Record) -> tuple[str, Any]:
    """The text that a run's last evaluation has experts for, and these."""
    last, valid = record.routing_steps()[-1], path_of(record.path, "valid")
    if not valid.exists():
        check_files(record, f"routing/step-{last}.npz")
        return "probe", record.routing(last, "probe_index")["probe_index"]
    check_files(record, f"{FOLDER}/{valid.name}")
    config = record.config()
    try:
        number = entries_of("valid", config["train.steps"], config["train.eval_every"]).index(last)
        experts = config["model.num_experts"]
        return "valid", read_entry(record.path, "valid", number, experts=experts)
    except (OSError, ValueError, LookupError) as error:
        raise RecordError(f"{valid}: cannot be read ({reason(error)})") from None
