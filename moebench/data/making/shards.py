"""Write the documents of a source as shards of bytes, the same for any number of processes.

Units are read in parallel into parts. A part holds texts in the order of arrival, and a table with
the domain and the hash of each. Then the documents of each domain are sorted by the hash of their
content, which does not depend on the order of files, and written in parallel as two shards:

    <domain>.train.bin        uint8 tokens of the documents, each ended by END
    <domain>.valid.bin        the same for validation: the documents of half `tune`, then of `test`
    <domain>.<split>.idx.npy  int64 [documents + 1], where documents begin, and the end

A text that occurs twice in a domain is kept once. A text in both splits is kept for validation. If
a source marks no document of a domain for validation, the documents with the smallest hashes are
taken, about one in twenty. Parts and shards are written atomically, so a preparation that was
killed continues from those that exist.
"""

import hashlib
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moebench.data.making.cache import Manifest, to_json
from moebench.data.making.overlap import overlap
from moebench.data.making.workers import Reporter, in_processes
from moebench.data.sources.document import Document, Source, Text, Unit, check_name, stem
from moebench.data.tokenizer import END, ByteTokenizer
from moebench.disk import read_json, replacing, write_bytes
from moebench.errors import DataError

PART_BYTES = 32_000_000  # of text in a part
PART_DOCUMENTS = 500_000
VALID_SHARE = 0.05
VALID_DOCUMENTS = 2  # at least: one for each half
MAX_DOMAINS = 1000  # with more, the column does not hold domains

TABLE = np.dtype(
    [("bytes", "<i8"), ("domain", "<i4"), ("split", "<i1"), ("rank", "<u8"), ("digest", "u1", 32)]
)
SPLITS = {None: 0, "train": 1, "valid": 2}

Ints = npt.NDArray[np.int64]
Entry = tuple[int, int, int, int, npt.NDArray[np.uint8]]  # a row of TABLE


def bin_path(shard: Path) -> Path:
    """The file of a shard's tokens; a shard is FOLDER/<domain>.<split>."""
    return shard.with_name(f"{shard.name}.bin")


def index_path(shard: Path) -> Path:
    """The file that says where a shard's documents begin."""
    return shard.with_name(f"{shard.name}.idx.npy")


def build(
    folder: Path,
    source: Source,
    domains: Sequence[str] | None,
    *,
    processes: int,
    reporter: Reporter,
) -> Manifest:
    """Write the shards of some domains of a source (None: of all) and return their manifest."""
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    units = source.units(domains)

    def on_read(done: set[int]) -> None:
        text = sum(path.stat().st_size for path in parts.glob("*.text"))
        sizes = [unit.size for unit in units]
        share = sum(sizes[number] for number in done) / max(1, sum(sizes))
        reporter.show(f"reading: {text / 1e6:,.0f} MB of text", share / 2)

    tasks = [(source, number, unit, parts) for number, unit in enumerate(units)]
    in_processes(read_unit, tasks, processes, on_read, all_errors=True)
    names = _domains(parts, source.label) if domains is None else tuple(domains)

    def on_write(done: set[int]) -> None:
        share = (1 + len(done) / len(names)) / 2
        reporter.show(f"sorting: {len(done)} of {len(names)} domains", share)

    work = partial(write_domain, folder, parts, source.label, source.keeps_duplicates)
    tasks = [(name,) for name in names]
    written = in_processes(work, tasks, processes, on_write, all_errors=True)
    counts = dict(zip(names, written, strict=True))
    for domain, terms in source.licences(names).items():
        counts[domain]["licence"] = terms
    for domain, of_domain in counts.items():
        train, valid = (of_domain[split]["bytes"] for split in ("train", "valid"))
        reporter.say(
            f"{domain}: {train / 1e6:.1f} MB train, {valid / 1e3:.0f} kB valid{_dropped(of_domain)}"
        )
    shutil.rmtree(parts)
    tokenizer = ByteTokenizer()
    return {
        "source": source.fingerprint(domains),
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        "domains": counts,
    }


def _dropped(counts: dict[str, Any]) -> str:
    if not counts["duplicates"]:
        return ""
    return f", {counts['duplicates']} duplicates left out"


# Reading units into parts


def read_unit(source: Source, number: int, unit: Unit, parts: Path) -> None:
    """Read a unit into parts, after those that an earlier process wrote."""
    if (parts / f"{number}.done").exists():
        return
    seen = count = 0
    while (table := parts / f"{number}-{count}.npz").exists():
        with np.load(table) as part:
            seen += len(part["table"])
        count += 1
    documents = islice(source.documents(unit), seen, None)
    while _write_part(documents, parts / f"{number}-{count}"):
        count += 1
    write_bytes(parts / f"{number}.done", b"")


def _write_part(documents: Iterator[Document], path: Path) -> bool:
    """Write a part, its table last as the sign that it is whole; False if no document is left."""
    table: list[Entry] = []
    domains: dict[str, int] = {}
    size = 0
    with replacing(path.with_name(path.name + ".text")) as file:
        while size < PART_BYTES and len(table) < PART_DOCUMENTS:
            # do not name the document here: it may fill the memory, and must be freed before the
            # next one is read
            entry = _write_document(next(documents, None), domains, file.write)
            if entry is None:
                break
            table.append(entry)
            size += entry[0]
    if not table:
        path.with_name(path.name + ".text").unlink()
        return False
    with replacing(path.with_name(path.name + ".npz")) as file:
        np.savez(file, table=np.array(table, TABLE), domains=np.array([*domains]))
    return True


def _write_document(
    document: Document | None, domains: dict[str, int], write: Callable[[Text], Any]
) -> Entry | None:
    if document is None:
        return None
    domain = domains.get(document.domain)
    if domain is None:
        remedy = "name another column by data.domain_column"
        check_name(document.domain, document.name, remedy)
        domain = domains[document.domain] = len(domains)
    write(document.text)
    digest = hashlib.sha256(document.text)
    rank = int.from_bytes(digest.digest()[:8])
    digest.update(bytes([END]))
    content = np.frombuffer(digest.digest(), np.uint8)
    return len(document.text), domain, SPLITS[document.split], rank, content


def _tables(parts: Path) -> Iterator[tuple[Path, npt.NDArray[Any], list[str]]]:
    """(texts, table, domains) of each part, in the order of units."""
    order = sorted((tuple(map(int, path.stem.split("-"))), path) for path in parts.glob("*.npz"))
    for _, path in order:
        with np.load(path) as part:
            yield path.with_suffix(".text"), part["table"], part["domains"].tolist()


def _domains(parts: Path, label: str) -> tuple[str, ...]:
    names = {domain for _, _, domains in _tables(parts) for domain in domains}
    if not names:
        raise DataError(
            f"{label}: has no text, as all its files or rows are empty or null; add text, or name "
            "another column by data.text_column"
        )
    if len(names) > MAX_DOMAINS:
        raise DataError(
            f"{label}: has {len(names)} domains, more than {MAX_DOMAINS}; name a column with fewer "
            "values by data.domain_column"
        )
    return tuple(sorted(names))


# Writing domains from parts


def write_domain(
    folder: Path, parts: Path, label: str, keeps_duplicates: bool, domain: str
) -> dict[str, Any]:
    """Write the shards of a domain, unless they exist; returns its counts."""
    done = parts / f"{stem(domain)}.json"
    if done.exists():
        return read_json(done)
    texts, table = _find_texts(parts, domain)
    order = _arrange(table, keeps_duplicates)
    counts: dict[str, Any] = {"duplicates": len(table) - len(order.train) - len(order.valid)}
    if not len(table):
        raise DataError(
            f"{label}: domain {domain!r} has no text, as all its files or rows are empty or null; "
            "add text to it, remove it, or name another column by data.text_column"
        )
    if not len(order.train):
        raise DataError(
            f"{label}: domain {domain!r} has too little text to train on: all its documents "
            f"({len(order.valid)}) went to validation{_dropped(counts)}; add text to it"
        )
    if len(order.valid) < 2:
        raise DataError(
            f"{label}: domain {domain!r} has too little text for validation: the halves tune and "
            f"test need a document each, and it has {len(order.valid)}{_dropped(counts)}; add some"
        )
    train, valid = (folder / f"{stem(domain)}.{split}" for split in ("train", "valid"))
    counts["train"] = texts.write(train, order.train)
    counts["valid"] = texts.write(valid, order.valid)
    counts["valid"]["tune_documents"] = order.tune
    counts["valid"]["tune_tokens"] = (
        int(table["bytes"][order.valid[: order.tune]].sum()) + order.tune
    )
    counts["overlap"] = overlap(bin_path(valid), bin_path(train))
    write_bytes(done, to_json(counts))
    return counts


class _Texts:
    """The documents of a domain in the parts.

    They are read and not memory-mapped: mapped pages would count as memory.

    Args:
        paths: files of the parts.
        places: [documents, 2] number of the part, and first byte in it.
        lengths: [documents] bytes.
    """

    def __init__(self, paths: Sequence[Path], places: Ints, lengths: Ints):
        self.paths, self.places, self.lengths = paths, places, lengths

    def write(self, shard: Path, order: Ints) -> dict[str, int]:
        """Write documents, by number, as a shard with its index, and return the counts."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files = [os.open(path, os.O_RDONLY) for path in self.paths]
        try:
            with replacing(bin_path(shard)) as file:
                rows = zip(self.places[order].tolist(), self.lengths[order].tolist(), strict=True)
                for (part, begin), length in rows:
                    while length:  # a read gives at most 2 GiB
                        text = os.pread(files[part], length, begin)
                        file.write(text)
                        begin, length = begin + len(text), length - len(text)
                    file.write(bytes([END]))
        finally:
            for descriptor in files:
                os.close(descriptor)
        offsets = np.cumsum([0, *(self.lengths[order] + 1)], dtype=np.int64)
        with replacing(index_path(shard)) as file:
            np.save(file, offsets)
        documents, tokens = len(order), int(offsets[-1])
        return {"documents": documents, "tokens": tokens, "bytes": tokens - documents}


def _find_texts(parts: Path, domain: str) -> tuple[_Texts, npt.NDArray[Any]]:
    """The documents of a domain, and their rows [documents] of TABLE."""
    paths, tables, places = [], [np.empty(0, TABLE)], [np.empty((0, 2), np.int64)]
    for path, table, domains in _tables(parts):
        if domain not in domains:
            continue
        rows = np.flatnonzero(table["domain"] == domains.index(domain))
        begins = np.cumsum(table["bytes"]) - table["bytes"]
        places.append(np.stack([np.full(len(rows), len(paths)), begins[rows]], 1))
        tables.append(table[rows])
        paths.append(path)
    table = np.concatenate(tables)
    return _Texts(paths, np.concatenate(places), table["bytes"]), table


class _Order(NamedTuple):
    """The documents to write, by number, in order."""

    train: Ints
    valid: Ints
    tune: int  # documents of valid in its first half, `tune`


def _arrange(table: npt.NDArray[Any], keeps_duplicates: bool) -> _Order:
    words = np.ascontiguousarray(table["digest"]).view(">u8")  # [documents, 4]
    order = np.lexsort(words.T[::-1])
    is_valid = table["split"] == SPLITS["valid"]
    explicit = is_valid.any()
    if not keeps_duplicates:
        # of equal documents, one of validation comes first if there is one
        order = np.lexsort((~is_valid, *words.T[::-1]))
        same = (words[order][1:] == words[order][:-1]).all(1)
        order = order[np.concatenate([[True], ~same])] if len(order) else order
    if not explicit:
        ranks = table["rank"][order]
        number = max(
            int((ranks < int(VALID_SHARE * 2**64)).sum()), min(VALID_DOCUMENTS, len(ranks))
        )
        is_valid = np.zeros(len(table), bool)
        is_valid[order[np.argsort(ranks, kind="stable")[:number]]] = True
    train, valid = order[~is_valid[order]], order[is_valid[order]]
    in_tune = _halve((table["bytes"][valid] + 1).tolist())
    halves = np.concatenate([valid[in_tune], valid[~in_tune]])
    return _Order(train, halves, int(in_tune.sum()))


def _halve(lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which documents go to half `tune`: in turn, each goes to the half with fewer tokens so far.

    Args:
        lengths: [documents] tokens.
    """
    in_tune = np.zeros(len(lengths), bool)
    ahead = 0  # tokens of tune minus those of test
    for i, length in enumerate(lengths):
        in_tune[i] = ahead <= 0
        ahead += length if in_tune[i] else -length
    return in_tune
