"""All documents of a source's domain."""

from moebench.data.sources.document import Document, Source


def documents(source: Source, domain: str) -> list[Document]:
    return [
        document
        for unit in source.units([domain])
        for document in source.documents(unit)
        if document.domain == domain
    ]


def texts(source: Source, domain: str) -> dict[str, str]:
    """The text of each document by its name."""
    return {item.name: item.text.decode() for item in documents(source, domain)}
