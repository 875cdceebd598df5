"""What a source of text is: named domains, each a stream of documents."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Split = Literal["train", "valid"]


class Document(NamedTuple):
    """A piece of text that is learned or validated on as a whole."""

    name: str
    text: str
    split: Split


class Source(Protocol):
    """Where text comes from. To make one is cheap; only `documents` reads text."""

    @property
    def label(self) -> str:
        """The key and value that chose it, to open an error message with."""
        ...

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains it has, sorted."""
        ...

    def fingerprint(self, domains: Sequence[str]) -> dict[str, Any]:
        """What decides whether documents read earlier are still right, as plain JSON values."""
        ...

    def documents(self, domain: str) -> Iterator[Document]:
        """The documents of a domain, in the same order on each call; DataError if one is broken."""
        ...
