"""Several sources as one corpus.

A domain that occurs in two sources is one domain with the text of both.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from moebench.data.sources.document import Document, Source, Unit


class Mixture:
    """Sources, each with the domains to take from it (None: all)."""

    label = "data=mixture"

    def __init__(self, parts: Sequence[tuple[Source, Sequence[str] | None]]):
        self.parts = parts
        self.keeps_duplicates = all(source.keeps_duplicates for source, _ in parts)
        self.notes = [note for source, _ in parts for note in source.notes]

    @property
    def domains(self) -> tuple[str, ...] | None:
        names: set[str] = set()
        for source, chosen in self.parts:
            domains = chosen or source.domains
            if domains is None:
                return None
            names.update(domains)
        return tuple(sorted(names))

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        return {
            "source": "mixture",
            "parts": [
                [chosen, source.fingerprint(self._taken(source, chosen, domains))]
                for source, chosen in self.parts
            ],
        }

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        return [
            Unit((str(number), *unit.parts), unit.size)
            for number, (source, chosen) in enumerate(self.parts)
            for unit in source.units(self._taken(source, chosen, domains))
        ]

    def documents(self, unit: Unit) -> Iterator[Document]:
        source, chosen = self.parts[int(unit.parts[0])]
        for document in source.documents(Unit(unit.parts[1:], unit.size)):
            if chosen is None or document.domain in chosen:
                yield document

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        stated: dict[str, list[str]] = {domain: [] for domain in domains}
        for source, chosen in self.parts:
            available = chosen or source.domains or domains
            licences = source.licences([name for name in domains if name in available])
            for domain, terms in licences.items():
                stated[domain] += [terms] if terms and terms not in stated[domain] else []
        return {domain: "; ".join(terms) for domain, terms in stated.items()}

    @staticmethod
    def _taken(
        source: Source, chosen: Sequence[str] | None, domains: Sequence[str] | None
    ) -> list[str] | None:
        """The domains to take from a source; None for all of them."""
        available = chosen or source.domains
        if available is None or source.domains is None:
            return None
        return [name for name in available if domains is None or name in domains]
