"""The user's text: a folder with one sub-folder or file per domain.

    DIR/<domain>/{train,valid}.ENDING  a sub-folder, split by the user
    DIR/<domain>.ENDING                a file

`moebench.data.sources.files` lists the endings. The folders in a sub-folder are read, too. A file
or folder called `valid` there is for validation, and everything else is for training. If a domain
has no valid file, the content of its documents decides the split (`moebench.data.making.shards`).
Hidden files and moebench's cache are ignored. READMEs, notices and licences, .md files beside the
domains and files with another ending are left out, and named. With `data.domain_column`, the rows
of JSON and Parquet files name their domain.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moebench.data.sources.document import Document, Split, Unit, check_name
from moebench.data.sources.files import ENDINGS_IN_WORDS, Columns, ending, reading, rows
from moebench.disk import cache_root, expanded, open_regular, regular_status
from moebench.errors import DataError, MoebenchError, apply_to_all, combine

READER = 2  # raised when the same files would make other documents
LICENCE_BYTES = 10_000  # of a licence file that are read
UNIT_BYTES = 32_000_000  # of small files that are read as one unit
# LICENSE.txt, copying-mit and LICENSE_MIT.txt, but not license_texts.txt, which may be a domain
LICENCE = re.compile(r"(?i:licen[cs]e|copying)\b.*|(LICEN[CS]E|COPYING)_.*")
ABOUT = re.compile(r"(?i:readme|notice)\b.*|(README|NOTICE)_.*")
TABLES = (".jsonl", ".json", ".parquet")  # never about the text
HELD_BACK = ("val", "validation", "dev", "test")  # names for text that many keep from training
NAMED = 3  # files that a note names


class Folder:
    """The domains of a folder; DataError for a folder without any."""

    keeps_duplicates = False

    def __init__(self, path: str, columns: Columns = Columns()):  # noqa: B008, it is a tuple
        self.label = f"data.path={_as_typed(path)}"
        self.columns = columns
        self.root = expanded(path)
        if not self.root.exists():
            raise DataError(f"{self.label}: there is no such folder; create it or correct the path")
        if not self.root.is_dir():
            raise DataError(
                f"{self.label}: is a file; give the folder that holds one sub-folder or file "
                "per domain"
            )
        if self.root.resolve() == _cache():
            raise DataError(
                f"{self.label}: is moebench's cache; name the folder of your text, or set "
                "MOEBENCH_CACHE to another folder"
            )
        _check_utf8(self.root.resolve(), self.label)
        self._files: dict[str, list[Path]] = {}  # by domain
        left_out: dict[str, list[Path]] = {}  # by reason
        for entry in _visible(self.root):
            domain = entry.name if entry.is_dir() else _stem(entry)
            for file, reason in _files(entry, self.root):
                if reason:
                    left_out.setdefault(reason, []).append(file)
                else:
                    self._files.setdefault(domain, []).append(file)
            if entry.is_dir():
                self._files.setdefault(domain, [])
        self.notes = (*_notes(self.label, self.root, left_out), *self._trained_on())
        self._check_domains()

    def _check_domains(self) -> None:
        if not any(self._files.values()):
            raise DataError(
                f"{self.label}: holds no domain; put text in DIR/<domain>/train.txt or "
                f"DIR/<domain>.txt (endings: {ENDINGS_IN_WORDS})"
            )
        if self.columns.domain is not None:
            return
        for split in ("train", "valid"):
            if split in self._files:
                raise DataError(
                    f"{self.label}: {split!r} is a split, not a domain; put it in a sub-folder "
                    "named after its domain, or give the folder above"
                )
        apply_to_all(
            lambda name: check_name(name, str(self.root), "rename that file or folder"),
            self._files,
        )

    def _trained_on(self) -> tuple[str, ...]:
        """One line on training text whose name says that it is held back."""
        paths = (path.relative_to(self.root) for paths in self._files.values() for path in paths)
        if self.columns.domain is None:
            paths = (path for path in paths if len(path.parts) > 1)  # else a domain's name
        names = [
            str(path)
            for path in sorted(paths)
            if {*path.parts[1:-1], _stem(path)} & {*HELD_BACK} and _split(path) is None
        ]
        if not names:
            return ()
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return (
            f"{self.label}: trains on {', '.join(names[:NAMED])}{more}; call a file or folder for "
            'validation "valid", and move away what is not to be read',
        )

    @property
    def domains(self) -> tuple[str, ...] | None:
        return tuple(sorted(self._files)) if self.columns.domain is None else None

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        return {
            "source": "folder",
            "reader": READER,
            "path": str(self.root.resolve()),
            "columns": list(self.columns),
            "files": {
                name: [status.st_size, status.st_mtime_ns]
                for name, status in self._statuses(domains).items()
            },
        }

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        """Neighbouring files, grouped up to UNIT_BYTES."""
        apply_to_all(self._check_not_empty, self._files if domains is None else domains)
        units: list[Unit] = []
        for name, status in self._statuses(domains).items():
            size = status.st_size
            if units and units[-1].size + size <= UNIT_BYTES:
                last = units.pop()
                units.append(Unit((*last.parts, name), last.size + size))
            else:
                units.append(Unit((name,), size))
        return units

    def documents(self, unit: Unit) -> Iterator[Document]:
        """As `Source.documents`; the errors of all files are raised together, after the last."""
        errors: list[MoebenchError] = []
        for name in unit.parts:
            try:
                yield from self._documents(self.root / name)
            except DataError as error:
                errors.append(error)
        if errors:
            raise combine(errors)

    def _documents(self, path: Path) -> Iterator[Document]:
        place = path.relative_to(self.root)
        default = place.parts[0] if len(place.parts) > 1 else _stem(path)
        split = _split(place)
        for name, text, domain in rows(path, self.columns):
            yield Document(name, text, domain or default, split)

    def _check_not_empty(self, domain: str) -> None:
        if not self._files[domain]:
            raise DataError(
                f"{self.root / domain}: holds no text (endings: {ENDINGS_IN_WORDS}); add "
                "some, remove the folder, or pick others by data.domains"
            )

    def _statuses(self, domains: Sequence[str] | None) -> dict[str, os.stat_result]:
        """The status of each file by its path in the folder; DataError for one that is no file."""
        names = sorted(self._files if domains is None else domains)
        paths = [path for domain in names for path in self._files[domain]]
        return dict(apply_to_all(self._status, paths))

    def _status(self, path: Path) -> tuple[str, os.stat_result]:
        name = path.relative_to(self.root)
        _check_utf8(name, str(path))
        with reading(path):
            return name.as_posix(), regular_status(path)

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        """The first line of a licence file: in the domain's sub-folder, else in the folder."""
        default = _licence(self.root)
        return {
            domain: (_licence(self.root / domain) if (self.root / domain).is_dir() else "")
            or default
            for domain in domains
        }


def _as_typed(path: str) -> str:
    """A path from the working directory, if it lies below: so it was typed, most likely."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _check_utf8(path: Path, where: str) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: its name is not UTF-8; rename it") from None


def _visible(folder: Path) -> list[Path]:
    cache = _cache()
    with reading(folder):
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".")
            and (cache is None or path.name != cache.name or path.resolve() != cache)
        )


def _cache() -> Path | None:
    """moebench's cache, which is no text of the user."""
    try:
        return cache_root().resolve()
    except FileNotFoundError:
        return None


def _files(
    path: Path, root: Path, seen: set[tuple[int, int]] | None = None
) -> Iterator[tuple[Path, str]]:
    """Each file at and below a path, with the reason to leave it out; "" for text.

    Args:
        root: the folder of domains.
        seen: the folders that were visited: a link may lead back to them.
    """
    seen = set() if seen is None else seen
    if path.is_dir():
        with reading(path):
            status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            yield path, "behind a link to a folder that is read already"
            return
        seen.add((status.st_dev, status.st_ino))
        for below in _visible(path):
            yield from _files(below, root, seen)
    elif not (kind := ending(path.name)):
        if not _is_licence(path):
            yield path, f"with the ending {path.suffix}" if path.suffix else "without an ending"
    elif _is_licence(path):
        yield path, "with a licence"
    elif _is_named(path, ABOUT):
        yield path, "about the text"
    elif kind.startswith(".md") and path.parent == root:
        yield path, "beside the domains, in Markdown"
    else:
        yield path, ""


def _notes(label: str, root: Path, left_out: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """One line on the files that are left out: how many for each reason, and the first."""
    parts = [
        f"{len(paths)} {reason} ({paths[0].relative_to(root)})"
        for reason, paths in sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return (f"{label}: leaves out files: {', '.join(parts)}",) if parts else ()


def _split(place: Path) -> Split | None:
    """The split of a file, by its path in the folder of domains; None lets its content decide."""
    return "valid" if "valid" in (*place.parts[1:-1], _stem(place)) else None


def _is_licence(path: Path) -> bool:
    return _is_named(path, LICENCE)


def _is_named(path: Path, names: re.Pattern[str]) -> bool:
    return bool(names.fullmatch(path.name)) and not ending(path.name).startswith(TABLES)


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending(path.name))]


def _licence(folder: Path) -> str:
    for path in _visible(folder):
        if path.is_file() and _is_licence(path):
            with reading(path), open_regular(path) as file:
                lines = file.read(LICENCE_BYTES).decode(errors="replace").split("\n")
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
