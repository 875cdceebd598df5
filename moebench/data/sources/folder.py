"""The user's text: a folder with one sub-folder or file per domain.

    DIR/<domain>/{train,valid}.{txt,md,jsonl,jsonl.gz,parquet}  a sub-folder, split by the user
    DIR/<domain>.{txt,jsonl,jsonl.gz,parquet}                   a file

Any other such file in a sub-folder is for training. If a domain has no valid file, the content of
its documents decides the split (`moebench.data.making.shards`). Hidden files, files with another
ending, READMEs, and .md files beside the domains are ignored. With `data.domain_column`, the rows
of .jsonl and .parquet files name their domain.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moebench.data.sources.document import Document, Unit
from moebench.data.sources.files import ENDINGS, Columns, reading, rows
from moebench.errors import DataError

UNIT_BYTES = 32_000_000  # of small files that are read as one unit
LICENCES = ("licence", "license", "copying")  # beginnings of the names of licence files


class Folder:
    """The domains of a folder; DataError for a folder without any."""

    keeps_duplicates = False

    def __init__(self, path: str, columns: Columns = Columns()):  # noqa: B008, it is a tuple
        self.label = f"data.path={path}"
        self.columns = columns
        self.root = Path(path).expanduser()
        if not self.root.exists():
            raise DataError(f"{self.label}: there is no such folder; create it or correct the path")
        if not self.root.is_dir():
            raise DataError(
                f"{self.label}: is a file; give the folder that holds one sub-folder or file "
                "per domain"
            )
        self._files: dict[str, list[Path]] = {}  # sorted, by domain
        for entry in _visible(self.root):
            if entry.is_dir():
                files = [path for path in _visible(entry) if _is_text(path)]
                self._files.setdefault(entry.name, []).extend(files)
            elif _is_text(entry) and entry.suffix != ".md":
                self._files.setdefault(_stem(entry), []).append(entry)
        if not any(self._files.values()):
            raise DataError(
                f"{self.label}: holds no domain; put text in DIR/<domain>/train.txt or "
                f"DIR/<domain>.txt (endings: {', '.join(ENDINGS)})"
            )
        for split in ("train", "valid"):
            if split in self._files and columns.domain is None:
                raise DataError(
                    f"{self.label}: {split!r} is a split, not a domain; put it in a sub-folder "
                    "named after its domain, or give the folder above"
                )

    @property
    def domains(self) -> tuple[str, ...] | None:
        return tuple(sorted(self._files)) if self.columns.domain is None else None

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        files = {}
        for path in self._paths(domains):
            with reading(path):
                status = path.stat()
            files[path.relative_to(self.root).as_posix()] = [status.st_size, status.st_mtime_ns]
        return {
            "source": "folder",
            "path": str(self.root.resolve()),
            "columns": list(self.columns),
            "files": files,
        }

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        """Neighbouring files, grouped up to UNIT_BYTES."""
        for domain in self._files if domains is None else domains:
            if not self._files[domain]:
                raise DataError(
                    f"{self.root / domain}: holds no text (endings: {', '.join(ENDINGS)}); add "
                    "some, remove the folder, or pick others by data.domains"
                )
        units: list[Unit] = []
        for path in self._paths(domains):
            name = path.relative_to(self.root).as_posix()
            with reading(path):
                size = path.stat().st_size
            if units and units[-1].size + size <= UNIT_BYTES:
                last = units.pop()
                units.append(Unit((*last.parts, name), last.size + size))
            else:
                units.append(Unit((name,), size))
        return units

    def documents(self, unit: Unit) -> Iterator[Document]:
        for path in (self.root / name for name in unit.parts):
            default = path.parent.name if path.parent != self.root else _stem(path)
            split = "valid" if _stem(path) == "valid" else None
            for name, text, domain in rows(path, self.columns):
                yield Document(name, text, domain or default, split)

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        """The first line of a licence file: in the domain's sub-folder, else in the folder."""
        default = _licence(self.root)
        return {
            domain: (_licence(self.root / domain) if (self.root / domain).is_dir() else "")
            or default
            for domain in domains
        }

    def _paths(self, domains: Sequence[str] | None) -> list[Path]:
        names = sorted(self._files if domains is None else domains)
        return [path for domain in names for path in self._files[domain]]


def _visible(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_text(path: Path) -> bool:
    return path.name.endswith(ENDINGS) and path.stem.lower() != "readme"


def _stem(path: Path) -> str:
    ending = next(ending for ending in reversed(ENDINGS) if path.name.endswith(ending))
    return path.name.removesuffix(ending)


def _licence(folder: Path) -> str:
    for path in _visible(folder):
        if path.is_file() and path.name.lower().startswith(LICENCES):
            with reading(path):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
