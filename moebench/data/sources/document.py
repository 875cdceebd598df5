"""What a source of text is: units that are read one by one, each a stream of documents."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Split = Literal["train", "valid"]
Text = bytes | bytearray  # in UTF-8


class Document(NamedTuple):
    """A piece of text that is learned or validated on as a whole.

    Attributes:
        name: where it comes from, to open an error message with.
        text: checked, without NUL, never empty.
        domain: its label.
        split: None leaves it to its content: see `moebench.data.making.shards`.
    """

    name: str
    text: Text
    domain: str
    split: Split | None = None


class Unit(NamedTuple):
    """What can be read apart from the rest of a source, and so in a process of its own."""

    parts: tuple[str, ...]  # names that mean something to the source
    size: int  # in any measure, to show how much of the whole is done


class Source(Protocol):
    """Where text comes from. To make one is cheap; only `documents` reads text."""

    keeps_duplicates: bool  # whether a text that comes twice in a domain is meant to

    @property
    def label(self) -> str:
        """The key and value that chose it, to open an error message with."""
        ...

    @property
    def domains(self) -> tuple[str, ...] | None:
        """Names of the domains it has, sorted; None where only reading it tells."""
        ...

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        """What decides whether documents read earlier are still right, as plain JSON values."""
        ...

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        """What is to be read for these domains (None: for all), in a fixed order."""
        ...

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in the same order on each call; DataError if one is broken."""
        ...

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        """The licence of each domain's text in the source's own words; "" where it states none."""
        ...
