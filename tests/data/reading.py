"""Reading of sources in tests: all documents of a domain, or the error."""

import json
from pathlib import Path

import pytest

from moebench.data.sources.document import Document, Source
from moebench.data.sources.folder import Folder
from moebench.errors import DataError

TEXT = "".join(f"line {number} é\n" for number in range(200))


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


def lines(*texts: str) -> str:
    """Documents as JSON lines."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def read(root: Path, domain: str) -> dict[str | None, list[str]]:
    """The texts of a folder's domain by split; None where content decides."""
    texts: dict[str | None, list[str]] = {None: [], "train": [], "valid": []}
    for document in documents(Folder(str(root)), domain):
        texts[document.split].append(document.text.decode())
    return texts


def refused(root: Path, domain: str = "x") -> str:
    """The error, in one line, of reading all documents of a domain."""
    with pytest.raises(DataError) as caught:
        documents(Folder(str(root)), domain)
    assert "\n" not in str(caught.value)
    return str(caught.value)
