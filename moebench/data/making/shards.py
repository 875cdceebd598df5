"""From the documents of a source to shards of bytes, whatever the number of processes.

Units are read in parallel into parts: texts in the order of arrival, beside a table with the domain
and the hash of each. Then, in parallel again, each domain's documents are put into the order of the
hash of their content, which no order of files changes, and written as two shards:

    <domain>.train.bin        uint8 tokens of the documents, each ended by END
    <domain>.valid.bin        the same for validation: the documents of half `tune`, then of `test`
    <domain>.<split>.idx.npy  int64 [documents + 1], where documents begin, and the end

A text that comes twice in a domain is kept once; one that is both trained and validated on is only
validated on. Where no document of a domain is for validation, those of the smallest hashes are,
about one in twenty. Every part and shard is made aside and renamed, so that a preparation that was
killed goes on from those that are there.
"""

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from moebench.data.making.cache import Manifest, to_json
from moebench.data.making.overlap import overlap
from moebench.data.making.workers import Reporter, in_processes
from moebench.data.sources.document import Document, Source, Text, Unit
from moebench.data.tokenizer import END, ByteTokenizer
from moebench.disk import replacing, write_bytes
from moebench.errors import DataError

PART_BYTES = 32_000_000  # of text in a part
PART_DOCUMENTS = 500_000
VALID_SHARE = 0.05
VALID_DOCUMENTS = 2  # at least: one for each half
DOMAINS = 1000  # at most; more are no domains, but something else in that column
NAME_BYTES = 200  # of a domain's name in the name of a file

TABLE = np.dtype(
    [("bytes", "<i8"), ("domain", "<i4"), ("split", "<i1"), ("rank", "<u8"), ("digest", "u1", 32)]
)
SPLITS = {None: 0, "train": 1, "valid": 2}

Ints = npt.NDArray[np.int64]


def stem(domain: str) -> str:
    """How the files of a domain begin: its name, with what no file name may hold written as %XX."""
    return quote(domain, safe=" ")


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

    def read(done: set[int]) -> None:
        text = sum(path.stat().st_size for path in parts.glob("*.text"))
        sizes = [unit.size for unit in units]
        share = sum(sizes[number] for number in done) / max(1, sum(sizes))
        reporter.show(f"reading: {text / 1e6:,.0f} MB of text", share / 2)

    tasks = [(source, number, unit, parts) for number, unit in enumerate(units)]
    in_processes(spool, tasks, processes, read)
    found = _domains(parts, source.label) if domains is None else tuple(domains)

    def wrote(done: set[int]) -> None:
        reporter.show(
            f"sorting: {len(done)} of {len(found)} domains", (1 + len(done) / len(found)) / 2
        )

    work = partial(write_domain, folder, parts, source.label, source.keeps_duplicates)
    known = dict(
        zip(found, in_processes(work, [(each,) for each in found], processes, wrote), strict=True)
    )
    for domain, terms in source.licences(found).items():
        known[domain]["licence"] = terms
    for domain, counts in known.items():
        train, valid = (counts[split]["bytes"] for split in ("train", "valid"))
        reporter.say(
            f"{domain}: {train / 1e6:.1f} MB train, {valid / 1e3:.0f} kB valid{_dropped(counts)}"
        )
    shutil.rmtree(parts)
    tokenizer = ByteTokenizer()
    return {
        "source": source.fingerprint(domains),
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        "domains": known,
    }


def _dropped(counts: dict[str, Any]) -> str:
    if not counts["duplicates"]:
        return ""
    return f", {counts['duplicates']} duplicates left out"


def spool(source: Source, number: int, unit: Unit, parts: Path) -> None:
    """Read a unit into parts, after those that an earlier process left."""
    if (parts / f"{number}.done").exists():
        return
    seen = count = 0
    while (table := parts / f"{number}-{count}.npz").exists():
        with np.load(table) as part:
            seen += len(part["table"])
        count += 1
    documents = islice(source.documents(unit), seen, None)
    while _spool_part(documents, parts / f"{number}-{count}"):
        count += 1
    write_bytes(parts / f"{number}.done", b"")


def _spool_part(documents: Iterator[Document], path: Path) -> bool:
    """Write a part, its table last as the sign that it is whole; False if nothing is left."""
    table: list[tuple[int, int, int, int, npt.NDArray[np.uint8]]] = []
    domains: dict[str, int] = {}
    size = 0
    with replacing(path.with_name(path.name + ".text")) as file:
        while size < PART_BYTES and len(table) < PART_DOCUMENTS:
            # no name for the document outlives the turn: one may fill the memory
            if not (row := _spool_one(next(documents, None), domains, file.write)):
                break
            table.append(row)
            size += row[0]
    if not table:
        path.with_name(path.name + ".text").unlink()
        return False
    with replacing(path.with_name(path.name + ".npz")) as file:
        np.savez(file, table=np.array(table, TABLE), domains=np.array([*domains]))
    return True


def _spool_one(
    document: Document | None, domains: dict[str, int], put: Callable[[Text], Any]
) -> tuple[int, int, int, int, npt.NDArray[np.uint8]] | None:
    if document is None:
        return None
    domain = domains.get(document.domain)
    if domain is None:
        domain = domains[document.domain] = _checked(document, len(domains))
    put(document.text)
    digest = hashlib.sha256(document.text)
    rank = int.from_bytes(digest.digest()[:8])
    digest.update(bytes([END]))
    content = np.frombuffer(digest.digest(), np.uint8)
    return len(document.text), domain, SPLITS[document.split], rank, content


def _checked(document: Document, number: int) -> int:
    """The number of a new domain; DataError if its name cannot be one."""
    name = document.domain
    if not name.isprintable() or len(stem(name)) > NAME_BYTES:
        raise DataError(
            f"{document.name}: {name[:40]!r} cannot be the name of a domain, which is one line of "
            f"at most {NAME_BYTES} bytes; name another column by data.domain_column"
        )
    return number


def _tables(parts: Path) -> Iterator[tuple[Path, npt.NDArray[Any], list[str]]]:
    """(texts, table, domains) of each part, in the order of units."""
    order = sorted((tuple(map(int, path.stem.split("-"))), path) for path in parts.glob("*.npz"))
    for _, path in order:
        with np.load(path) as part:
            yield path.with_suffix(".text"), part["table"], part["domains"].tolist()


def _domains(parts: Path, label: str) -> tuple[str, ...]:
    found = {domain for _, _, domains in _tables(parts) for domain in domains}
    if not found:
        raise DataError(f"{label}: holds no text; add some")
    if len(found) > DOMAINS:
        raise DataError(
            f"{label}: has {len(found)} domains, more than {DOMAINS}; name a column with fewer "
            "values by data.domain_column"
        )
    return tuple(sorted(found))


def write_domain(
    folder: Path, parts: Path, label: str, keeps_duplicates: bool, domain: str
) -> dict[str, Any]:
    """Write the shards of a domain, unless they are there; returns its counts."""
    done = parts / f"{stem(domain)}.json"
    if done.exists():
        return json.loads(done.read_bytes())
    paths, tables, places = [], [], []
    for path, table, domains in _tables(parts):
        if domain not in domains:
            continue
        own = np.flatnonzero(table["domain"] == domains.index(domain))
        begins = np.cumsum(table["bytes"]) - table["bytes"]
        places.append(np.stack([np.full(len(own), len(paths)), begins[own]], 1))
        tables.append(table[own])
        paths.append(path)
    table = np.concatenate(tables) if tables else np.empty(0, TABLE)
    counts, train, valid, tune = _arranged(table, keeps_duplicates)
    if not len(train):
        raise DataError(
            f"{label}: domain {domain!r} has too little text to train on, "
            f"{len(valid)} documents that all went to validation{_dropped(counts)}; add text to it"
        )
    if len(valid) < 2:
        raise DataError(
            f"{label}: domain {domain!r} has too little text for validation, {len(valid)} document "
            f"where the halves tune and test need one each{_dropped(counts)}; add some"
        )
    texts = _Texts(paths, np.concatenate(places), table["bytes"])
    for split, order in (("train", train), ("valid", valid)):
        path = folder / f"{stem(domain)}.{split}"
        counts[split] = texts.write(path, order)
    counts["valid"]["tune_documents"] = tune
    counts["valid"]["tune_tokens"] = int(table["bytes"][valid[:tune]].sum()) + tune
    counts["overlap"] = overlap(
        *(folder / f"{stem(domain)}.{split}.bin" for split in ("valid", "train"))
    )
    write_bytes(done, to_json(counts))
    return counts


def _arranged(
    table: npt.NDArray[Any], keeps_duplicates: bool
) -> tuple[dict[str, Any], Ints, Ints, int]:
    """Which documents are written, and in which order.

    Returns:
        Counts of those left out, the documents of train, those of valid, and how many of valid are
        in the half `tune`.
    """
    words = np.ascontiguousarray(table["digest"]).view(">u8")  # [documents, 4]
    order = np.lexsort(words.T[::-1])
    split = table["split"]
    explicit = (split == SPLITS["valid"]).any()
    is_valid = split == SPLITS["valid"]
    if not keeps_duplicates:
        # of equal documents, one of validation comes first if there is one
        order = np.lexsort((~is_valid, *words.T[::-1]))
        same = (words[order][1:] == words[order][:-1]).all(1)
        order = order[np.concatenate([[True], ~same])] if len(order) else order
    if not explicit:
        ranks = table["rank"][order]
        chosen = max(
            int((ranks < int(VALID_SHARE * 2**64)).sum()), min(VALID_DOCUMENTS, len(ranks))
        )
        is_valid = np.zeros(len(table), bool)
        is_valid[order[np.argsort(ranks, kind="stable")[:chosen]]] = True
    train, valid = order[~is_valid[order]], order[is_valid[order]]
    in_tune = _lighter_half((table["bytes"][valid] + 1).tolist())
    halves = np.concatenate([valid[in_tune], valid[~in_tune]])
    return {"duplicates": len(table) - len(order)}, train, halves, int(in_tune.sum())


def _lighter_half(lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The documents of half `tune`, where each in turn goes to the half that has less so far."""
    in_tune = np.zeros(len(lengths), bool)
    ahead = 0  # tokens of tune beyond those of test
    for i, length in enumerate(lengths):
        in_tune[i] = ahead <= 0
        ahead += length if in_tune[i] else -length
    return in_tune


class _Texts:
    """Documents in parts. They are read and not mapped: mapped pages would count as memory."""

    def __init__(self, paths: Sequence[Path], places: Ints, lengths: Ints):
        self.paths, self.places, self.lengths = paths, places, lengths

    def write(self, path: Path, order: Ints) -> dict[str, int]:
        """Write the shard of these documents and its index, and return the counts."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files = [os.open(each, os.O_RDONLY) for each in self.paths]
        try:
            with replacing(path.with_name(path.name + ".bin")) as file:
                rows = zip(self.places[order].tolist(), self.lengths[order].tolist(), strict=True)
                for (part, begin), length in rows:
                    while length:  # a read gives at most 2 GiB
                        text = os.pread(files[part], length, begin)
                        file.write(text)
                        begin, length = begin + len(text), length - len(text)
                    file.write(bytes([END]))
        finally:
            for each in files:
                os.close(each)
        offsets = np.cumsum([0, *(self.lengths[order] + 1)], dtype=np.int64)
        with replacing(path.with_name(path.name + ".idx.npy")) as file:
            np.save(file, offsets)
        documents, tokens = len(order), int(offsets[-1])
        return {"documents": documents, "tokens": tokens, "bytes": tokens - documents}
