"""Tasks on a run's checkpoint, with their results sealed into its record.

`blimp` reads minimal pairs from a folder of BLiMP's files (arXiv 1912.00582): the sentence that a
speaker accepts must be the likelier one. `cloze` is made from the run's own validation documents
(the `test` half): which of four passages of the domain continues the text? Both score whole texts
in batches, without balance terms or sampling.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moebench import __version__
from moebench.balance import Routing, Steering
from moebench.config.compose import Composer
from moebench.config.replayed import replays
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import map_layers
from moebench.contents import anything, fields
from moebench.data.corpus import Corpus, prepare
from moebench.data.maps import BY_DOMAIN, from_bytes
from moebench.data.tokenizer import BYTES, ByteTokenizer, Tokenizer
from moebench.disk import sha256
from moebench.errors import ConfigError, DataError, RecordError, remedy
from moebench.metrics.tasks import accuracy, by_group, cloze, read_blimp, won
from moebench.model.noise import keys
from moebench.model.transformer import MoETransformer
from moebench.protection import CHECKPOINTS, STATE, check_files, checkpoint_path, steps_kept
from moebench.records import MAP, Record
from moebench.train.build import blank_model, make_objective
from moebench.train.checkpoint import check_fit, load_checkpoint
from moebench.train.feed import with_domain
from moebench.train.kernels import apply_to_read
from moebench.train.prescribed import Prescription
from moebench.train.step import steering_after

BATCH_TOKENS = 8192
CHOICES = 4  # candidates of a cloze question
LENGTH = 16  # of each, in tokens; in sequences too short for it, a quarter of them

Ints = npt.NDArray[np.int64]
Track = Callable[[str, Iterable[Any], int], Iterable[Any]]  # shows the progress of an iteration


@dataclass(frozen=True)
class Checkpoint:
    """A run's model after some step, with its data and tokenizer."""

    record: Record
    config: ExperimentConfig
    model: MoETransformer
    step: int
    device: torch.device
    steering: Steering | None = None
    prescription: Prescription | None = None

    @torch.no_grad()
    def __call__(
        self,
        tokens: Int[Tensor, "sequences tokens"],
        domain: Int[Tensor, " sequences"] | None = None,
        forced: Int[Tensor, "layers sequences tokens slots"] | None = None,
    ) -> tuple[Float[Tensor, "sequences tokens vocab"], Routing]:
        """Logits and routing. Experts are selected as at the end of training, or `forced`.

        Args:
            domain: of each sequence, among the run's; needed if the run `reads_domains`. Under
                `data.domain_token`, the model reads a token that names it first; the routing holds
                that token, the logits do not.
        """
        named = self.config.data.domain_token
        if named:
            assert domain is not None, "see domain_number"
            size = self.record.manifest()["data"]["vocab_size"]
            tokens = with_domain(tokens, domain.to(tokens.device), size)
        steering = self.steering
        if forced is None and self.prescription is not None:
            forced = self.prescription(tokens, domain)
        if forced is not None:
            steering = (steering or Steering())._replace(forced=forced)
        if self.model.gating.random:
            noise = keys(0, len(tokens), self.device)
            steering = (steering or Steering())._replace(noise=noise)
        logits, routing = self.model(tokens, steering)
        return logits[:, int(named) :], routing

    @property
    def note(self) -> str:
        """What a user must know of the experts of a new text; "" if there is nothing."""
        if not replays(self.config):
            return ""
        return (
            f"{self.record.path}: was trained with the selections of another run, which has none "
            "for this text; its own router selects the experts"
        )

    @property
    def reads_domains(self) -> bool:
        """Whether the run reads the domain of a text, in a token or in its router's map."""
        by_map = self.prescription is not None and self.prescription.map.kind in BY_DOMAIN
        return by_map or self.config.data.domain_token

    def domain_number(self, name: str | None) -> int | None:
        """The number of the domain that a text without one of its own is taken to be of.

        Raises ConfigError for an unknown name, and for none where the run needs one.
        """
        known = list(self.record.manifest()["domains"])
        if name is None and self.reads_domains:
            raise ConfigError(
                f"{self.record.path}: reads the domain of each text, which this text does not say; "
                f"name one of {', '.join(known)} by --domain"
            )
        if name is not None and name not in known:
            raise ConfigError(f"--domain={name}: the run has no such domain; {remedy(name, known)}")
        return None if name is None else known.index(name)

    @cached_property
    def corpus(self) -> Corpus:
        """The run's data. Raises DataError if it is missing or differs from what the run read."""
        corpus = prepare(self.config.data, download=False)
        wanted = self.record.manifest()["data"]["content_hash"]
        if corpus.content_hash != wanted:
            raise DataError(
                f"{self.record.path}: was trained on data {wanted[:10]}, but what its config names "
                f"is now {corpus.content_hash[:10]}; restore that text"
            )
        return corpus

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.config.data.tokenizer == BYTES:
            return ByteTokenizer()
        return self.corpus.tokenizer

    @torch.no_grad()
    def log_likelihood(
        self,
        texts: Sequence[Ints],
        begins: Sequence[int],
        track: Track,
        label: str,
        domains: Ints | None = None,
    ) -> npt.NDArray[np.float64]:
        """[texts] the sum of log p over each text's tokens from `begins` on (at least 1), in nats.

        Texts of similar length form a batch, padded at the end, where causal attention ignores it.

        Args:
            domains: of each text, if known.
        """
        scores = np.zeros(len(texts))
        batches = list(_batches([len(text) for text in texts]))
        for batch in track(label, batches, len(batches)):
            longest = max(len(texts[at]) for at in batch)
            rows = np.full((len(batch), longest), self.tokenizer.end, np.int64)
            scored = np.zeros((len(batch), longest - 1), bool)
            for row, at in enumerate(batch):
                rows[row, : len(texts[at])] = texts[at]
                scored[row, begins[at] - 1 : len(texts[at]) - 1] = True
            tokens = torch.from_numpy(rows).to(self.device)
            of_batch = None if domains is None else torch.from_numpy(domains[batch])
            logits, _ = self(tokens[:, :-1], of_batch)
            nats = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
            scores[batch] = -(nats.double().cpu().numpy() * scored).sum(1)
        return scores


NEEDED = fields(
    {"data": fields({"vocab_size": anything, "content_hash": anything}), "domains": anything}
)


def open_checkpoint(record: Record, step: int | None = None) -> Checkpoint:
    """The last checkpoint of a run, or the checkpoint of a step.

    Raises:
        RecordError: if there is none, or it is damaged.
    """
    if not record.exists():
        raise RecordError(f"{record.path}: is not a run; moebench train makes one")
    kept = steps_kept(record.path / CHECKPOINTS)
    if not kept:
        raise RecordError(f"{record.path}: has no checkpoint yet")
    step = kept[-1] if step is None else step
    if step not in kept:
        known = ", ".join(map(str, kept))
        raise RecordError(f"--step={step}: {record.path} has no such checkpoint; it has {known}")
    path = checkpoint_path(record.path, step)
    used = [f"{CHECKPOINTS}/step-{step}/{STATE}"] if record.is_done() else []
    check_files(record, "config.yaml", "manifest.json", *used, step=step)
    config = Composer().compose([], base=record.path / "config.yaml")
    manifest = record.manifest()
    if wrong := NEEDED(manifest, ""):
        raise RecordError(f"{record.path}/manifest.json: {wrong}; the record is damaged")
    has_map = map_layers(config) > 0 and not replays(config)
    if has_map:
        check_files(record, MAP, step=step)
    # a single text is not a logical group, so nothing is dropped
    dropless = replace(config.router, capacity_factor=None)
    size, domains = manifest["data"]["vocab_size"], len(manifest["domains"])
    objective = make_objective(config, manifest["domains"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    described = replace(config, router=dropless)
    check_fit(path, described, size, domains)
    model = blank_model(described, size, domains)
    averages = config.optim.ema > 0
    loaded = load_checkpoint(path, model, device=device, objective=objective, averages=averages)
    if loaded.average is not None:
        model.load_state_dict(loaded.average)
    model.to(device).eval()
    apply_to_read(manifest, config, device, model)
    steering = steering_after(objective, model, loaded.balance)
    prescription = None
    if has_map:
        tokens = size + (domains if config.data.domain_token else 0)
        path, experts = str(record.path / MAP), config.model.num_experts
        read = from_bytes(record.map(), path, vocabulary=tokens, experts=experts)
        prescription = Prescription.on(read, device)
    return Checkpoint(record, config, model, step, device, steering, prescription)


@dataclass(frozen=True)
class Settings:
    """Settings of the tasks.

    Attributes:
        blimp: a folder of BLiMP's files, `*.jsonl` or `*.jsonl.gz`.
        limit: pairs of each paradigm; None for all.
        questions: the most cloze questions of a domain.
        seed: of the cloze questions.
        domain: that BLiMP's sentences are taken to be of, for runs that read domains.
    """

    blimp: Path = Path("blimp")
    limit: int | None = None
    questions: int = 100
    seed: int = 0
    domain: str | None = None


def check_domain(checkpoint: Checkpoint, names: Sequence[str], settings: Settings) -> None:
    """Raise ConfigError for a domain that the tasks need and do not get, or get and do not need."""
    if "blimp" in names:
        checkpoint.domain_number(settings.domain)
    elif settings.domain is not None:
        raise ConfigError(
            f"--domain={settings.domain}: is for blimp, whose sentences have none; leave it out"
        )


def run_tasks(
    checkpoint: Checkpoint, names: Sequence[str], settings: Settings, track: Track
) -> dict[str, dict[str, Any]]:
    """Task -> its results, as written to `tasks/<task>-step-<step>.json`."""
    record, step = checkpoint.record, checkpoint.step
    file = "average.safetensors" if checkpoint.config.optim.ema else "model.safetensors"
    weights = record.path / CHECKPOINTS / f"step-{step}" / file
    about = {
        **({"note": checkpoint.note} if checkpoint.note else {}),
        "run": record.name,
        "step": step,
        "weights": sha256(weights),
        "moebench": __version__,
        "torch": torch.__version__,
    }
    written = {}
    for name in names:
        results = TASKS[name](checkpoint, settings, track)
        content = {"task": name, **about, **results}
        written[name] = record.save_task(f"{name}-step-{step}", content)
    return written


def check_names(words: str) -> list[str]:
    """The tasks in `a,b`. Raises ConfigError for an unknown name, or for none."""
    names = list(dict.fromkeys(filter(None, words.split(","))))
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"--tasks={name}: no such task; there are {', '.join(TASKS)}")
    if not names:
        raise ConfigError(f"--tasks={words}: name some of {', '.join(TASKS)}")
    return names


def _blimp(checkpoint: Checkpoint, settings: Settings, track: Track) -> dict[str, Any]:
    pairs, digest = read_blimp(settings.blimp, settings.limit)
    number = checkpoint.domain_number(settings.domain)
    end = [checkpoint.tokenizer.end]  # a sentence starts like a document
    texts = [
        np.concatenate([end, checkpoint.tokenizer.encode(sentence.encode())]).astype(np.int64)
        for pair in pairs
        for sentence in (pair.good, pair.bad)
    ]
    domains = None if number is None else np.full(len(texts), number)
    scores = checkpoint.log_likelihood(texts, [1] * len(texts), track, "blimp", domains)
    right = won(scores.reshape(-1, 2))
    return {
        "data": digest,
        "limit": settings.limit,
        "of_domain": settings.domain,
        "all": accuracy(right, 0.5)._asdict(),
        "phenomenon": by_group(right, [pair.phenomenon for pair in pairs], 0.5),
        "paradigm": by_group(right, [pair.paradigm for pair in pairs], 0.5),
    }


def _cloze(checkpoint: Checkpoint, settings: Settings, track: Track) -> dict[str, Any]:
    corpus, seq_len = checkpoint.corpus, checkpoint.config.seq_len
    length = min(LENGTH, seq_len // 4)
    if not length:
        raise ConfigError(f"seq_len={seq_len}: is too short for cloze, which takes 4 tokens")
    made = cloze(
        ((name, corpus.valid(name, "test")) for name in corpus.domains),
        end=corpus.tokenizer.end,
        questions=settings.questions,
        context=seq_len - length,
        length=length,
        candidates=CHOICES,
        seed=settings.seed,
    )
    if not made:
        raise DataError("cloze: no domain has enough validation text for a question")
    texts = [np.concatenate([one.context, end]) for one in made for end in one.candidates]
    begins = [len(one.context) for one in made for _ in one.candidates]
    known = list(checkpoint.record.manifest()["domains"])
    domains = np.array([known.index(one.domain) for one in made for _ in one.candidates])
    scores = checkpoint.log_likelihood(texts, begins, track, "cloze", domains)
    size = [corpus.tokenizer.bytes_in(end) for one in made for end in one.candidates]
    right = won((scores / np.array(size)).reshape(-1, CHOICES))
    return {
        "data": corpus.content_hash,
        "questions": settings.questions,
        "seed": settings.seed,
        "context": seq_len - length,
        "length": length,
        "all": accuracy(right, 1 / CHOICES)._asdict(),
        "domain": by_group(right, [one.domain for one in made], 1 / CHOICES),
    }


TASKS: dict[str, Callable[[Checkpoint, Settings, Track], dict[str, Any]]] = {
    "blimp": _blimp,
    "cloze": _cloze,
}


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length, the longest first, up to BATCH_TOKENS each."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
