"""Encode shards of bytes as shards of larger tokens: the same documents in the same order.

Documents are encoded in parallel, a few megabytes at a time, into parts that are then joined. A
preparation that was killed continues from the parts that exist.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from moebench.config.schema import DataConfig
from moebench.data.draws import permutation
from moebench.data.making.cache import Manifest
from moebench.data.making.shards import Ints, bin_path, index_path
from moebench.data.making.workers import Reporter, in_processes
from moebench.data.sources.document import stem
from moebench.data.tokenizer import FILE, Subwords, read_tokenizer, train_bpe
from moebench.disk import replacing, write_bytes

SPLITS = ("train", "valid")
TASK_BYTES = 4_000_000  # of text that is encoded as one task
BPE_BYTES = 16_000_000  # of text that BPE is trained on, from all domains; limits its memory


def made_from(config: DataConfig, trained: Sequence[str]) -> Any:
    """The inputs that decide the tokenizer, given the text: JSON values without paths."""
    if config.tokenizer == "bpe":
        return ["bpe", config.vocab_size, config.text_seed, BPE_BYTES, list(trained)]
    return ["file", Subwords(read_tokenizer(config.tokenizer), _setting(config)).hash]


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
    """Write the shards of the domains of a manifest of bytes, and return the new manifest.

    Args:
        folder: gets the shards.
        config: only `tokenizer`, `vocab_size` and `text_seed` are used.
        text: the folder of the shards of bytes.
        manifest: of the domains to encode.
        trained: the domains that BPE may be trained on.
    """
    path = folder / FILE
    if not path.exists():
        write_bytes(path, _tokenizer_file(config, text, trained, reporter))
    tokenizer = Subwords(path.read_bytes(), _setting(config))
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    part_paths: dict[str, list[Path]] = {}  # of a shard
    tasks = []
    for name in (f"{stem(domain)}.{split}" for domain in manifest["domains"] for split in SPLITS):
        part_paths[name] = []
        for number, (first, last) in enumerate(_ranges(text / name)):
            part_paths[name].append(parts / f"{name}-{number}.npz")
            task = (text / name, first, last, path, _setting(config), part_paths[name][-1])
            tasks.append(task)

    def on_progress(done: set[int]) -> None:
        share = len(done) / max(1, len(tasks))
        reporter.show(f"encoding: {len(done)} of {len(tasks)} parts", share)

    in_processes(encode_part, tasks, processes, on_progress)
    domains = {}
    for domain, of_bytes in manifest["domains"].items():
        counts = {**of_bytes, **{split: dict(of_bytes[split]) for split in SPLITS}}
        for split in SPLITS:
            name = f"{stem(domain)}.{split}"
            offsets = _join(part_paths[name], folder / name)
            counts[split]["tokens"] = int(offsets[-1])
            if split == "valid":
                counts[split]["tune_tokens"] = int(offsets[counts[split]["tune_documents"]])
        domains[domain] = counts
        reporter.say(f"{domain}: {counts['train']['tokens'] / 1e6:.2f} million tokens train")
    shutil.rmtree(parts)
    return {
        "source": manifest["source"],
        "text": manifest["content_hash"],
        "tokenizer": {"name": config.tokenizer, "hash": tokenizer.hash},
        "domains": domains,
    }


def _tokenizer_file(
    config: DataConfig, text: Path, trained: Sequence[str], reporter: Reporter
) -> bytes:
    """The content of tokenizer.json, read or trained."""
    if config.tokenizer != "bpe":
        return read_tokenizer(config.tokenizer)
    reporter.show(f"training BPE with {config.vocab_size} tokens", 0)
    return train_bpe(_sample(text, trained, config.text_seed), config.vocab_size)


def encode_part(
    shard: Path, begin: int, end: int, tokenizer: Path, setting: str, part: Path
) -> None:
    """Encode documents `begin` to `end` - 1 of a shard of bytes, unless the part exists."""
    if part.exists():
        return
    encoder = _open_tokenizer(tokenizer, setting)
    offsets = np.load(index_path(shard), mmap_mode="r")[begin : end + 1]
    text = _read(shard, offsets[0], offsets[-1])
    offsets = offsets - offsets[0]
    encoded = []
    for first, last in pairwise(offsets):
        tokens = encoder.encode(text[first : last - 1])
        encoded.append(np.append(tokens, tokens.dtype.type(encoder.end)))
    with replacing(part) as file:
        lengths = [len(tokens) for tokens in encoded]
        np.savez(file, tokens=np.concatenate(encoded), lengths=lengths)


@lru_cache(1)
def _open_tokenizer(path: Path, setting: str) -> Subwords:
    return Subwords(path.read_bytes(), setting)


def _setting(config: DataConfig) -> str:
    return f"data.tokenizer={config.tokenizer}"


def _read(shard: Path, begin: int, end: int) -> bytes:
    """Bytes of a shard, read and not memory-mapped: mapped pages would count as memory."""
    with bin_path(shard).open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _ranges(shard: Path) -> Iterator[tuple[int, int]]:
    """The documents of each task as (first, last + 1): those that begin in the same TASK_BYTES."""
    task = np.load(index_path(shard))[:-1] // TASK_BYTES  # [documents]
    begins = [0, *(np.flatnonzero(np.diff(task)) + 1).tolist(), len(task)]
    return pairwise(begins)


def _join(parts: Sequence[Path], shard: Path) -> Ints:
    """Write a shard from its parts; returns [documents + 1] where documents begin, and the end."""
    lengths = [np.zeros(1, np.int64)]
    with replacing(bin_path(shard)) as file:
        for path in parts:
            with np.load(path) as part:
                file.write(part["tokens"].tobytes())
                lengths.append(part["lengths"])
    offsets = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    with replacing(index_path(shard)) as file:
        np.save(file, offsets)
    return offsets


def _sample(text: Path, trained: Sequence[str], seed: int) -> Iterator[str]:
    """Training documents in an order keyed by the seed, the same amount of text per domain."""
    for domain in sorted(trained):
        shard = text / f"{stem(domain)}.train"
        offsets = np.load(index_path(shard), mmap_mode="r")
        left = BPE_BYTES // len(trained)
        for i in permutation(len(offsets) - 1, seed, "bpe", domain).tolist():
            document = _read(shard, offsets[i], min(offsets[i] + left, offsets[i + 1] - 1))
            yield document.decode(errors="ignore")  # the last may be cut within a character
            left -= len(document)
            if left <= 0:
                break
