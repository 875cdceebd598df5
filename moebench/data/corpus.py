"""A corpus on disk: tokens of each domain, made once and mapped into memory from then on.

The cache lies in $MOEBENCH_CACHE, else in $XDG_CACHE_HOME/moebench or ~/.cache/moebench. It has one
folder per source, fingerprint and format, so that a changed source makes a new one:

    <domain>.train.bin        uint8 tokens of the documents, in the order of a hash of their content
    <domain>.valid.bin        the same for validation: the documents of half `tune`, then of `test`
    <domain>.<split>.idx.npy  int64 [documents + 1], where documents begin, and the end
    manifest.json             counts, sizes, sha256 of each file, and what they were made from

A folder is written aside, synced and renamed as a whole, under a lock: whoever finds it finds it
complete, and two processes that need it at once share one preparation.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from moebench.config.schema import DataConfig
from moebench.data.sources import Source, choose_domains, open_source
from moebench.data.tokenizer import ByteTokenizer
from moebench.errors import DataError

FORMAT = 1  # raised when the same source would make other files
SAMPLE_CHARACTERS = 60
SAMPLE_BYTES = 1000  # read for it; much of it may be white space

Half = Literal["tune", "test"]
Tokens = npt.NDArray[np.uint8]


class Corpus:
    """Some or all domains of a prepared cache.

    Attributes:
        directory: where the cache lies.
        domains: names, in the order in which batches number them.
        manifest: manifest.json, cut down to these domains.
        content_hash: hex digest of the names and tokens of these domains and of nothing else.
        tokenizer: what made the tokens.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], domains: Sequence[str]):
        self.directory = directory
        self.domains = tuple(domains)
        self.tokenizer = ByteTokenizer()
        kept = {name for domain in self.domains for name in _names(domain)}
        files = {name: known for name, known in manifest["files"].items() if name in kept}
        self.content_hash = _content_hash(files, self.domains)
        self.manifest = {
            **manifest,
            "domains": {domain: manifest["domains"][domain] for domain in self.domains},
            "files": files,
            "content_hash": self.content_hash,
        }
        self._mapped: dict[str, Tokens] = {}

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def train(self, domain: str) -> Tokens:
        """All training tokens [tokens] of a domain, mapped into memory."""
        return self._tokens(f"{domain}.train.bin")

    def valid(self, domain: str, half: Half) -> Tokens:
        """The validation tokens [tokens] of one half of a domain's documents."""
        cut = self.manifest["domains"][domain]["valid"]["tune_tokens"]
        tokens = self._tokens(f"{domain}.valid.bin")
        return tokens[:cut] if half == "tune" else tokens[cut:]

    def describe(self) -> list[dict[str, str | int | float]]:
        """One row per domain: documents and text of both splits, and how its text begins."""
        rows = []
        for domain in self.domains:
            train, valid = (self.manifest["domains"][domain][split] for split in ("train", "valid"))
            ends = np.load(self.directory / f"{domain}.train.idx.npy", mmap_mode="r")
            beginning = self.tokenizer.decode(self.train(domain)[: min(ends[1], SAMPLE_BYTES)])
            rows.append(
                {
                    "domain": domain,
                    "train_documents": train["documents"],
                    "train_mb": train["bytes"] / 1e6,
                    "valid_documents": valid["documents"],
                    "valid_kb": valid["bytes"] / 1e3,
                    "sample": " ".join(beginning.split())[:SAMPLE_CHARACTERS],
                }
            )
        return rows

    def check(self) -> None:
        """Hash every file again; where one is damaged, discard the cache and raise DataError."""
        for name, known in self.manifest["files"].items():
            path = self.directory / name
            if not path.is_file() or _sha256(path) != known["sha256"]:
                with _locked(self.directory, None):
                    (self.directory / "manifest.json").unlink(missing_ok=True)
                raise DataError(
                    f"{path}: does not match its checksum; the cache is discarded, make it again "
                    "with `moebench data prepare`"
                )

    def _tokens(self, name: str) -> Tokens:
        if name not in self._mapped:
            mapped = np.memmap(self.directory / name, np.uint8, mode="r")
            self._mapped[name] = mapped.view(np.ndarray)  # memmap's own indexing is slow
        return self._mapped[name]


def prepare(config: DataConfig, *, progress: Callable[[str], None] | None = None) -> Corpus:
    """The corpus that a config asks for, from the cache or, the first time, made and cached.

    Args:
        config: of which `source`, `path` and `domains` count.
        progress: gets lines of what is being made; none where the cache has it all.

    Raises DataError for text that is missing, broken or too little, and for a cache that cannot
    be written.
    """
    source = open_source(config)
    domains = choose_domains(config, source)
    for made in (source.domains, tuple(sorted(domains))):  # a cache of all has those picked, too
        directory = cache_root() / _key(source, made)
        if manifest := _read(directory):
            return Corpus(directory, manifest, domains)
    with _locked(directory, progress):
        manifest = _read(directory)  # another process may have made it while this one waited
        if manifest is None:
            manifest = _build(directory, source, made, progress)
    return Corpus(directory, manifest, domains)


def cache_root() -> Path:
    if given := os.environ.get("MOEBENCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebench"


def _key(source: Source, domains: Sequence[str]) -> str:
    """Name of the folder that holds these domains of a source as it is now."""
    fingerprint = source.fingerprint(domains)
    made_from = [FORMAT, ByteTokenizer().hash, list(domains), fingerprint]
    return f"{fingerprint['source']}-{hashlib.sha256(_json(made_from)).hexdigest()[:16]}"


def _read(directory: Path) -> dict[str, Any] | None:
    """The manifest, if it is there and every file has the size that it says."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        sizes = {name: (directory / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    right = all(sizes[name] == known["bytes"] for name, known in manifest["files"].items())
    return manifest if right else None


@contextmanager
def _locked(directory: Path, progress: Callable[[str], None] | None) -> Iterator[None]:
    """Alone with a folder of the cache; DataError if the cache cannot be written."""
    lock = FileLock(f"{directory}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                progress("waiting for another process that prepares the same data")
            lock.acquire()
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or directory}: the cache cannot be written ({error.strerror}); set "
            "MOEBENCH_CACHE to a folder that can be"
        ) from None
    finally:
        lock.release()


def _build(
    directory: Path, source: Source, domains: Sequence[str], progress: Callable[[str], None] | None
) -> dict[str, Any]:
    """Make a folder of the cache and return its manifest; the caller holds the lock."""
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
    aside.mkdir()
    if progress:
        progress(f"{source.label}: preparing {', '.join(domains)} in {directory}")
    try:
        known = {}
        for domain in domains:
            known[domain] = _write_domain(aside, source, domain)
            if progress:
                train, valid = (known[domain][split]["bytes"] for split in ("train", "valid"))
                progress(f"{domain}: {train / 1e6:.1f} MB train, {valid / 1e3:.0f} kB valid")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(aside.iterdir())
        }
        tokenizer = ByteTokenizer()
        manifest = {
            "format": FORMAT,
            "source": source.fingerprint(domains),
            "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
            "domains": known,
            "files": files,
            "content_hash": _content_hash(files, domains),
        }
        with (aside / "manifest.json").open("wb") as file:
            file.write(_json(manifest, indent=1))
            _sync(file)
        _sync_folder(aside)
        shutil.rmtree(directory, ignore_errors=True)  # damaged, or it would have been used
        aside.rename(directory)
        _sync_folder(directory.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _write_domain(folder: Path, source: Source, domain: str) -> dict[str, dict[str, int]]:
    """Write the four files of a domain; returns the counts of both splits."""
    tokenizer = ByteTokenizer()
    end = bytes([tokenizer.end])
    with (
        closing(_Spool(folder / f"{domain}.train.arrived")) as train,
        closing(_Spool(folder / f"{domain}.valid.arrived")) as valid,
    ):
        for document in source.documents(domain):
            spool = train if document.split == "train" else valid
            spool.add(tokenizer.encode(document.text).tobytes() + end)
    if not train.lengths:
        raise DataError(
            f"{source.label}: domain {domain!r} has too little text to train on, "
            f"{len(valid.lengths)} documents that all went to validation; add text to it"
        )
    if len(valid.lengths) < 2:
        raise DataError(
            f"{source.label}: domain {domain!r} has too little text for validation, "
            f"{len(valid.lengths)} document where the halves tune and test need one each; add some"
        )
    order = valid.by_content()
    tune = _lighter_half(valid.lengths, order)
    halves = [i for i in order if i in tune] + [i for i in order if i not in tune]
    counts = {
        "train": train.write(folder / f"{domain}.train", train.by_content()),
        "valid": valid.write(folder / f"{domain}.valid", halves),
    }
    counts["valid"]["tune_tokens"] = sum(valid.lengths[i] for i in tune)
    return counts


def _lighter_half(lengths: Sequence[int], order: Iterable[int]) -> set[int]:
    """The documents of half `tune`, where each in turn goes to the half that has less so far."""
    tune: set[int] = set()
    ahead = 0  # tokens of tune beyond those of test
    for i in order:
        if ahead <= 0:
            tune.add(i)
        ahead += lengths[i] if i in tune else -lengths[i]
    return tune


class _Spool:
    """Documents on disk in the order of arrival, to be written again in another."""

    def __init__(self, path: Path):
        self.path = path
        self.lengths: list[int] = []
        self._digests: list[bytes] = []
        self._file = path.open("wb")

    def add(self, tokens: bytes) -> None:
        self._file.write(tokens)
        self.lengths.append(len(tokens))
        self._digests.append(hashlib.sha256(tokens).digest())

    def close(self) -> None:
        self._file.close()

    def by_content(self) -> list[int]:
        """Numbers of the documents in the order of a hash of their content."""
        return sorted(range(len(self._digests)), key=self._digests.__getitem__)

    def write(self, stem: Path, order: Sequence[int]) -> dict[str, int]:
        """Write `.bin` and `.idx.npy`, remove the closed spool, and return the counts."""
        arrived = np.memmap(self.path, np.uint8, mode="r")
        ends = np.cumsum(self.lengths)
        with Path(f"{stem}.bin").open("wb") as file:
            for i in order:
                file.write(arrived[ends[i] - self.lengths[i] : ends[i]].tobytes())
            _sync(file)
        offsets = np.cumsum([0, *(self.lengths[i] for i in order)], dtype=np.int64)
        with Path(f"{stem}.idx.npy").open("wb") as file:
            np.save(file, offsets)
            _sync(file)
        self.path.unlink()
        documents, tokens = len(order), int(offsets[-1])
        return {"documents": documents, "tokens": tokens, "bytes": tokens - documents}


def _names(domain: str) -> list[str]:
    """The files of a domain."""
    return [f"{domain}.{split}.{end}" for split in ("train", "valid") for end in ("bin", "idx.npy")]


def _content_hash(files: dict[str, Any], domains: Iterable[str]) -> str:
    """A digest of the names and tokens of domains, whatever their order."""
    content = {
        domain: [files[f"{domain}.{split}.bin"]["sha256"] for split in ("train", "valid")]
        for domain in sorted(domains)
    }
    return hashlib.sha256(_json([ByteTokenizer().hash, content])).hexdigest()


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=indent).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
