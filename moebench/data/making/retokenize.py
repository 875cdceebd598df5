"""From shards of bytes to shards of larger tokens: the same documents in the same order.

Documents are encoded in parallel, some megabytes at a time, into parts that are then joined; a
preparation that was killed goes on from the parts that are there.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moebench.config.schema import DataConfig
from moebench.data.draws import permutation
from moebench.data.making.cache import Manifest
from moebench.data.making.shards import stem
from moebench.data.making.workers import Reporter, in_processes
from moebench.data.tokenizer import FILE, Subwords, read_tokenizer, train_bpe
from moebench.disk import replacing, write_bytes

SPLITS = ("train", "valid")
TASK_BYTES = 4_000_000  # of text that is encoded as one piece of work
BPE_BYTES = 16_000_000  # of text that BPE is trained on, from all domains together: for its memory


def made_from(config: DataConfig, trained: Sequence[str]) -> Any:
    """What decides the tokenizer, given the text: JSON values that name no path."""
    if config.tokenizer == "bpe":
        return ["bpe", config.vocab_size, config.text_seed, BPE_BYTES, list(trained)]
    return ["file", Subwords(read_tokenizer(config.tokenizer), _said(config)).hash]


def build(
    folder: Path,
    config: DataConfig,
    text: Path,
    manifest: Manifest,
    trained: Sequence[str],
    *,
    processes: int,
    reporter: Reporter,
) -> Manifest:
    """Write the shards of all domains of a manifest of bytes, and return theirs.

    Args:
        config: of which `tokenizer`, `vocab_size` and `text_seed` count.
        text: the folder of the shards of bytes.
        manifest: about the domains that are to be encoded.
        trained: those of them that BPE may be trained on.
    """
    path = folder / FILE
    if not path.exists():
        content = read_tokenizer(config.tokenizer) if config.tokenizer != "bpe" else b""
        if not content:
            reporter.show(f"training BPE with {config.vocab_size} tokens", 0)
            sample = _sample(text, manifest, trained, config.text_seed)
            content = train_bpe(sample, config.vocab_size)
        write_bytes(path, content)
    tokenizer = Subwords(path.read_bytes(), _said(config))
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    names = [f"{stem(domain)}.{split}" for domain in manifest["domains"] for split in SPLITS]
    runs = {name: [*_runs(text / name)] for name in names}
    tasks = [
        (text / name, *run, path, _said(config), parts / f"{name}-{number}.npz")
        for name in names
        for number, run in enumerate(runs[name])
    ]

    def look(done: set[int]) -> None:
        reporter.show(f"encoding: {len(done)} of {len(tasks)} parts", len(done) / max(1, len(tasks)))

    in_processes(encode_part, tasks, processes, look)
    known = {}
    for domain, counts in manifest["domains"].items():
        known[domain] = {**counts, **{split: dict(counts[split]) for split in SPLITS}}
        for split in SPLITS:
            name = f"{stem(domain)}.{split}"
            offsets = _join(
                [parts / f"{name}-{i}.npz" for i in range(len(runs[name]))], folder / name
            )
            known[domain][split]["tokens"] = int(offsets[-1])
            if split == "valid":
                tune = counts[split]["tune_documents"]
                known[domain][split]["tune_tokens"] = int(offsets[tune])
        tokens = known[domain]["train"]["tokens"]
        reporter.say(f"{domain}: {tokens / 1e6:.2f} million tokens train")
    shutil.rmtree(parts)
    return {
        "source": manifest["source"],
        "text": manifest["content_hash"],
        "tokenizer": {"name": config.tokenizer, "hash": tokenizer.hash},
        "domains": known,
    }


def encode_part(shard: Path, begin: int, end: int, tokenizer: Path, said: str, part: Path) -> None:
    """Encode documents `begin` to `end` - 1 of a shard of bytes, unless that is done."""
    if part.exists():
        return
    encoder = _opened(tokenizer, said)
    offsets = np.load(shard.with_name(shard.name + ".idx.npy"), mmap_mode="r")[begin : end + 1]
    text = _read(shard, offsets[0], offsets[-1])
    offsets = offsets - offsets[0]
    encoded = []
    for first, last in pairwise(offsets):
        tokens = encoder.encode(text[first : last - 1])
        encoded.append(np.append(tokens, tokens.dtype.type(encoder.end)))
    with replacing(part) as file:
        np.savez(file, tokens=np.concatenate(encoded), lengths=[len(each) for each in encoded])


@lru_cache(1)
def _opened(path: Path, said: str) -> Subwords:
    return Subwords(path.read_bytes(), said)


def _said(config: DataConfig) -> str:
    return f"data.tokenizer={config.tokenizer}"


def _read(shard: Path, begin: int, end: int) -> bytes:
    """Bytes of a shard, read and not mapped: mapped pages would count as memory."""
    with shard.with_name(shard.name + ".bin").open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _runs(shard: Path) -> Iterator[tuple[int, int]]:
    """Runs of documents (first, last + 1), each of those that begin within TASK_BYTES."""
    turns = np.load(shard.with_name(shard.name + ".idx.npy"))[:-1] // TASK_BYTES
    begins = [0, *(np.flatnonzero(np.diff(turns)) + 1).tolist(), len(turns)]
    return pairwise(begins)


def _join(parts: Sequence[Path], shard: Path) -> npt.NDArray[np.int64]:
    """Write a shard from its parts; returns where its documents begin, and the end."""
    lengths = [np.zeros(1, np.int64)]
    with replacing(shard.with_name(shard.name + ".bin")) as file:
        for path in parts:
            with np.load(path) as part:
                file.write(part["tokens"].tobytes())
                lengths.append(part["lengths"])
    offsets = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    with replacing(shard.with_name(shard.name + ".idx.npy")) as file:
        np.save(file, offsets)
    return offsets


def _sample(text: Path, manifest: Manifest, trained: Sequence[str], seed: int) -> Iterator[str]:
    """Training documents of each domain in an order keyed by the seed, equal text from each."""
    for domain in sorted(trained):
        shard = text / f"{stem(domain)}.train"
        offsets = np.load(shard.with_name(shard.name + ".idx.npy"), mmap_mode="r")
        left = BPE_BYTES // len(trained)
        for i in permutation(len(offsets) - 1, seed, "bpe", domain).tolist():
            document = _read(shard, offsets[i], min(offsets[i] + left, offsets[i + 1] - 1))
            yield document.decode(errors="ignore")  # the last may be cut within a character
            left -= len(document)
            if left <= 0:
                break
