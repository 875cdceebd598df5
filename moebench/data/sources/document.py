"""The interface of a source of text: units that are read apart, each a stream of documents."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import quote

from moebench.errors import DataError

Split = Literal["train", "valid"]
Text = bytes | bytearray  # in UTF-8
NAME_BYTES = 200  # of a domain's name in the name of a file


class Document(NamedTuple):
    """A text that belongs to one domain and one split.

    Attributes:
        name: where it comes from; error messages begin with it.
        text: not empty, without NUL.
        domain: its label.
        split: None lets its content decide, see `moebench.data.making.shards`.
    """

    name: str
    text: Text
    domain: str
    split: Split | None = None


class Unit(NamedTuple):
    """A part of a source that can be read by a separate process."""

    parts: tuple[str, ...]  # names that the source understands
    size: int  # in any unit, the same for all units of a source; for progress


class Source(Protocol):
    """Where text comes from. Making one is cheap; only `documents` reads text."""

    keeps_duplicates: bool  # whether to keep a text that occurs twice in a domain

    @property
    def notes(self) -> Sequence[str]:
        """Lines on what it leaves out and why; empty for most sources."""
        ...

    @property
    def label(self) -> str:
        """The key and value that chose it; error messages begin with it."""
        ...

    @property
    def domains(self) -> tuple[str, ...] | None:
        """The names of its domains, sorted; None if they are known only after reading."""
        ...

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        """JSON values that change whenever the documents of these domains may change."""
        ...

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        """The units to read for these domains (None: for all), in a fixed order."""
        ...

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in the same order on each call; DataError if one is broken."""
        ...

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        """The licence of each domain's text as the source states it; "" if it states none."""
        ...


def stem(domain: str) -> str:
    """The domain's name in the names of its files; characters that files cannot have become %XX."""
    return quote(domain, safe=" ")


def check_name(name: str, where: str, remedy: str) -> None:
    """Raise DataError for a name that no domain can have.

    Args:
        where: what the error begins with.
        remedy: what to do about it.
    """
    if not name.isprintable() or len(stem(name)) > NAME_BYTES:
        raise DataError(
            f"{where}: {name[:40]!r} cannot be the name of a domain, which is one line of "
            f"at most {NAME_BYTES} bytes without control characters; {remedy}"
        )
