"""Real text that every machine has: five domains made of Python and installed packages.

    python    source of the standard library
    cpp       headers that torch and Python ship
    english   docstrings and help topics of the standard library and of moebench's dependencies
    unicode   each character with its name
    bytecode  disassembly of the standard library

No file is executed and no package is imported. Files are taken in the order of a hash of their
name: the first ones for validation, the rest for training until the domain is large enough. The
text is therefore the same on each call, and on each machine with the same versions. A module that
one domain uses for validation is in no domain's training text, since its docstrings would reveal
its source.
"""

import ast
import dis
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from types import CodeType
from typing import Any

from moebench.data.sources.document import Document, Split, Unit

TRAIN_BYTES = 6_000_000  # of a domain; more would take too long to prepare
VALID_BYTES = 260_000
FILE_CHARACTERS = 32_768  # of one file, so that none dominates a domain
RESERVED = 0.08  # share of the modules that are in no domain's training text
DOCSTRING_CHARACTERS = 80  # shorter ones are rarely sentences

# Only moebench's dependencies, so that installing another package changes no data and no run.
PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sympy", "torch")
SKIPPED_FOLDERS = {
    *("__pycache__", "site-packages", "dist-packages"),
    *("test", "tests", "testing", "idle_test"),
    "pydoc_data",  # its topics are English
}
SKIPPED_PREFIXES = ("_sysconfigdata", "pyconfig")  # about this machine, not about Python
GENERATED = "ATen/ops/"  # thousands of torch's headers that hardly differ
HEADERS = (".h", ".hpp", ".cuh")

Readers = dict[str, Callable[[], str]]  # by a document's name, what reads its text


class Installed:
    """The five domains. The sizes of a domain's splits are parameters for tests."""

    label = "data=installed"
    keeps_duplicates = True  # few and tiny; published results used them
    notes = ()

    def __init__(self, train_bytes: int = TRAIN_BYTES, valid_bytes: int = VALID_BYTES):
        self.train_bytes = train_bytes
        self.valid_bytes = valid_bytes
        self._readers = {
            "bytecode": _bytecode,
            "cpp": _cpp,
            "english": _english,
            "python": _python,
            "unicode": _unicode,
        }

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self._readers)

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        return {
            "source": "installed",
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "unicode": unicodedata.unidata_version,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "folders": [str(folder) for folder in (_stdlib(), *_includes().values())],
            "limits": [self.train_bytes, self.valid_bytes],
        }

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        return [
            Unit((domain,), self.train_bytes)
            for domain in (self.domains if domains is None else domains)
        ]

    def documents(self, unit: Unit) -> Iterator[Document]:
        (domain,) = unit.parts
        readers = self._readers[domain]()
        reserved = RESERVED if domain in ("bytecode", "english", "python") else 0.0
        size = {"train": 0, "valid": 0}
        for name in sorted(readers, key=_rank):
            if size["valid"] < self.valid_bytes:
                split: Split = "valid"
            elif _rank(name) < reserved:
                continue
            elif size["train"] < self.train_bytes:
                split = "train"
            else:
                return
            if text := _beginning(readers[name]()).encode():
                size[split] += len(text)
                yield Document(name, text, domain, split)

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        python = "PSF-2.0"
        torch = importlib.metadata.metadata("torch")["License-Expression"]
        packages = f"{python}, and those of {', '.join(PACKAGES)}"
        others = {"cpp": f"{python}; torch: {torch}", "english": packages, "unicode": "Unicode-3.0"}
        return {domain: others.get(domain, python) for domain in domains}


def _rank(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _beginning(text: str) -> str:
    """The first whole lines of a text, up to FILE_CHARACTERS."""
    if len(text) <= FILE_CHARACTERS:
        return text
    return text[: text.rfind("\n", 0, FILE_CHARACTERS) + 1]


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _package(name: str) -> Path:
    """The folder of a package, found without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    assert spec.submodule_search_locations, name
    return Path(next(iter(spec.submodule_search_locations)))


def _includes() -> dict[str, Path]:
    return {"python": Path(sysconfig.get_path("include")), "torch": _package("torch") / "include"}


def _files(root: Path, endings: str | tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """(path in root with /, path) of the files with these endings."""
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.startswith("config-")
        ]
        for name in names:
            if name.endswith(endings) and not name.startswith(SKIPPED_PREFIXES):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def _python() -> Readers:
    return {name: partial(_source, path) for name, path in _files(_stdlib(), ".py")}


def _source(path: Path) -> str:
    """Python source in its declared encoding; "" if that is wrong."""
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (SyntaxError, UnicodeDecodeError):
        return ""


def _cpp() -> Readers:
    return {
        f"{owner}/{name}": partial(_header, path)
        for owner, root in _includes().items()
        for name, path in _files(root, HEADERS)
        if not name.startswith(GENERATED)
    }


def _header(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return ""


def _english() -> Readers:
    seen: set[str] = set()  # classes and packages copy docstrings from one another
    readers: Readers = {f"topics/{name}": partial(str, text) for name, text in topics.items()}
    for package, root in [("", _stdlib()), *((name, _package(name)) for name in PACKAGES)]:
        for name, path in _files(root, ".py"):
            readers[f"{package}/{name}".lstrip("/")] = partial(_docstrings, path, seen)
    return readers


def _docstrings(path: Path, seen: set[str]) -> str:
    """The docstrings of a file that no earlier file had, separated by blank lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about strings in the code of others
        try:
            tree = ast.parse(_source(path))
        except (SyntaxError, ValueError):
            return ""
    kept = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text and len(text) >= DOCSTRING_CHARACTERS and text not in seen and _is_utf8(text):
            seen.add(text)
            kept.append(text)
    return "\n\n".join(kept)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _unicode() -> Readers:
    return {
        f"U+{first:04X}": partial(_characters, range(first, first + 256))
        for first in range(0, sys.maxunicode, 256)
    }


def _characters(points: Iterable[int]) -> str:
    """A line for each character that has a name."""
    named = ((point, unicodedata.name(chr(point), "")) for point in points)
    return "".join(f"U+{point:04X} {chr(point)} {name}\n" for point, name in named if name)


def _bytecode() -> Readers:
    return {name: partial(_disassembly, path) for name, path in _files(_stdlib(), ".py")}


def _disassembly(path: Path) -> str:
    """The output of `dis` for a module, without docstrings, addresses and file names."""
    source = _source(path)
    if not source.strip():
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = compile(source, "<module>", "exec", dont_inherit=True, optimize=2)
        except (SyntaxError, ValueError):
            return ""
    return "\n".join(_lines(module))


def _lines(code: CodeType) -> Iterator[str]:
    """A heading and a line per instruction, then the same for each nested code object."""
    yield f"{code.co_qualname}:"
    for instruction in dis.get_instructions(code):
        text = instruction.argrepr
        if instruction.opcode in dis.hasconst:
            text = _constant(instruction.argval)
        argument = "" if instruction.arg is None else str(instruction.arg)
        line = f"{instruction.offset:6} {instruction.opname:<24}{argument:>4} {text}"
        yield line.rstrip()
    yield ""
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _lines(value)


def _constant(value: object) -> str:
    """`repr` without addresses, and with sets sorted: their order differs between processes."""
    if isinstance(value, CodeType):
        return f"<code object {value.co_name}>"
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(sorted(map(_constant, value)))}}})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))}{',' * (len(value) == 1)})"
    return repr(value)
