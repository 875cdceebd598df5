"""Several sources as one corpus.

A domain that two sources have is one domain with the text of both.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from moebench.data.sources.document import Document, Source, Unit


class Mixture:
    """Sources, each with the domains that are taken from it (None: all)."""

    label = "data=mixture"

    def __init__(self, parts: Sequence[tuple[Source, Sequence[str] | None]]):
        self.parts = parts
        self.keeps_duplicates = all(source.keeps_duplicates for source, _ in parts)

    @property
    def domains(self) -> tuple[str, ...] | None:
        found: set[str] = set()
        for source, picked in self.parts:
            domains = picked or source.domains
            if domains is None:
                return None
            found.update(domains)
        return tuple(sorted(found))

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        return {
            "source": "mixture",
            "parts": [
                [picked, source.fingerprint(self._own(source, picked, domains))]
                for source, picked in self.parts
            ],
        }

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        return [
            Unit((str(number), *unit.parts), unit.size)
            for number, (source, picked) in enumerate(self.parts)
            for unit in source.units(self._own(source, picked, domains))
        ]

    def documents(self, unit: Unit) -> Iterator[Document]:
        source, picked = self.parts[int(unit.parts[0])]
        for document in source.documents(Unit(unit.parts[1:], unit.size)):
            if picked is None or document.domain in picked:
                yield document

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        said: dict[str, list[str]] = {domain: [] for domain in domains}
        for source, picked in self.parts:
            own = [each for each in domains if each in (picked or source.domains or domains)]
            for domain, terms in source.licences(own).items():
                said[domain] += [terms] if terms and terms not in said[domain] else []
        return {domain: "; ".join(terms) for domain, terms in said.items()}

    @staticmethod
    def _own(
        source: Source, picked: Sequence[str] | None, domains: Sequence[str] | None
    ) -> list[str] | None:
        """Those of the domains that are taken from a source; None for all that it has."""
        has = picked or source.domains
        if has is None or source.domains is None:
            return None
        return [each for each in has if domains is None or each in domains]
