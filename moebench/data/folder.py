"""The user's text: one sub-folder or file per domain.

    DIR/<domain>/{train,valid}.{txt,jsonl,jsonl.gz}     a sub-folder, its split made by the user
    DIR/<domain>.{txt,jsonl,jsonl.gz}                   a file

Any other .txt, .jsonl or .jsonl.gz file of a sub-folder is for training. A line of a .jsonl file is
a document: an object with the key "text". A .txt file is cut at line ends into documents of about
16 kB, or a fortieth of a smaller file. Where a domain has no valid file, a hash of their content
picks about one document in twenty for validation. Names that start with a dot, and files with
another ending, are left alone.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moebench.data.document import Document, Split
from moebench.errors import DataError

ENDINGS = (".txt", ".jsonl", ".jsonl.gz")
PIECE_BYTES = 16_384  # of a .txt file
PIECES = 40  # at least, of a small .txt file with enough lines
VALID_SHARE = 0.05
VALID_DOCUMENTS = 2  # at least: one for each half


class Folder:
    """The domains of a folder; DataError where it has none, or is none."""

    def __init__(self, path: str):
        self.label = f"data.path={path}"
        self.root = Path(path).expanduser()
        if not self.root.exists():
            raise DataError(f"{self.label}: there is no such folder; create it or correct the path")
        if not self.root.is_dir():
            raise DataError(
                f"{self.label}: is a file; give the folder that holds one sub-folder or file "
                "per domain"
            )
        self._files: dict[str, list[Path]] = {}  # of a domain, sorted
        for entry in _visible(self.root):
            if entry.is_dir():
                files = [path for path in _visible(entry) if path.name.endswith(ENDINGS)]
                self._files.setdefault(entry.name, []).extend(files)
            elif entry.name.endswith(ENDINGS):
                self._files.setdefault(_stem(entry), []).append(entry)
        if not any(self._files.values()):
            raise DataError(
                f"{self.label}: holds no domain; put text in DIR/<domain>/train.txt or "
                f"DIR/<domain>.txt (endings: {', '.join(ENDINGS)})"
            )
        for split in ("train", "valid"):
            if split in self._files:
                raise DataError(
                    f"{self.label}: {split!r} is a split, not a domain; put it in a sub-folder "
                    "named after its domain, or give the folder above"
                )

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    def fingerprint(self, domains: Sequence[str]) -> dict[str, Any]:
        files = {}
        for path in (path for domain in sorted(domains) for path in self._files[domain]):
            with _reading(path):
                status = path.stat()
            files[path.relative_to(self.root).as_posix()] = [status.st_size, status.st_mtime_ns]
        return {"source": "folder", "path": str(self.root.resolve()), "files": files}

    def documents(self, domain: str) -> Iterator[Document]:
        files = self._files[domain]
        if not files:
            raise DataError(
                f"{self.root / domain}: holds no text (endings: {', '.join(ENDINGS)}); add some, "
                "remove the folder, or pick others by data.domains"
            )
        everything = (document for path in files for document in _documents(path))
        if any(_split(path) == "valid" for path in files):
            return everything
        return _with_valid(everything)


def _visible(folder: Path) -> list[Path]:
    with _reading(folder):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _stem(path: Path) -> str:
    ending = next(ending for ending in reversed(ENDINGS) if path.name.endswith(ending))
    return path.name.removesuffix(ending)


def _split(path: Path) -> Split:
    return "valid" if _stem(path) == "valid" else "train"


def _with_valid(documents: Iterator[Document]) -> Iterator[Document]:
    """The documents, with those of the smallest hashes moved to validation."""
    limit = int(VALID_SHARE * 2**64)
    nearest: list[tuple[int, Document]] = []  # held back, in case too few are below the limit
    found = 0
    for document in documents:
        rank = int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8])
        if rank < limit:
            found += 1
            yield document._replace(split="valid")
            continue
        nearest.append((rank, document))
        nearest.sort()
        if len(nearest) > VALID_DOCUMENTS:
            yield nearest.pop()[1]
    for _, document in nearest:
        if found < VALID_DOCUMENTS:
            found += 1
            document = document._replace(split="valid")
        yield document


def _documents(path: Path) -> Iterator[Document]:
    """The documents of a file that are not empty; DataError where it is broken."""
    read = _pieces if path.name.endswith(".txt") else _objects
    split = _split(path)
    with _reading(path):
        for name, text in read(path):
            if text:
                yield Document(name, text, split)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the system or gzip say about a path, as DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip ({error}); copy or compress it again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); allow it or remove it"
        ) from None


def _pieces(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of pieces of a .txt file, each of whole lines."""
    size = max(1, min(PIECE_BYTES, path.stat().st_size // PIECES))
    offset = 0
    with path.open("rb") as file:
        while lines := file.readlines(size):
            piece = b"".join(lines)
            yield f"{path}@{offset}", _decoded(piece, path, offset)
            offset += len(piece)


def _objects(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the lines of a .jsonl or .jsonl.gz file; blank ones are passed over."""
    offset = 0
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = _decoded(line, path, offset)
                text = _text_of(text, f"{path}:{number}") if text.strip() else ""
            except DataError:
                for _ in file:  # if gzip is what broke the line, it says so by the end
                    pass
                raise
            yield f"{path}:{number}", text
            offset += len(line)


def _decoded(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {offset + error.start} ({data[error.start]:#04x}) is not UTF-8; "
            "convert the file to UTF-8"
        ) from None


def _text_of(line: str, where: str) -> str:
    """The "text" of a line of JSON."""
    remedy = 'write one object with the key "text" a line'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{where}: is not JSON ({reason}); {remedy}") from None
    if not isinstance(value, dict) or "text" not in value:
        raise DataError(f'{where}: has no key "text"; {remedy}')
    text = value["text"]
    if not isinstance(text, str):
        raise DataError(f'{where}: "text" is of type {type(text).__name__}; make it a string')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f'{where}: "text" holds half a surrogate pair (\\ud800 to \\udfff); remove it'
        ) from None
    return text
