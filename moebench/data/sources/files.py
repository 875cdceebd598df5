"""Read documents from a file: plain text, Markdown, JSON lines or Parquet.

    .txt               cut at line ends into documents of about 16 kB, or a fortieth of a small file
    .md                one document
    .jsonl, .jsonl.gz  one document a line: an object with the text under a key
    .parquet           one document a row, with the text in a column

Nothing is guessed about a file's content. Bytes that are not UTF-8, a NUL (a sign of UTF-16 or of a
binary file), a missing column and a broken file are errors that name the place.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from moebench.data.sources.document import Text
from moebench.errors import DataError

ENDINGS = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")
PIECE_BYTES = 16_384  # of a .txt file
PIECES = 40  # at least, of a small .txt file with enough lines
BLOCK = 1 << 20  # bytes that are read or checked at a time
MAX_LINE_BYTES = 1 << 28  # of JSON; parsing a line takes several times its memory
ROWS = 256  # of a Parquet file that are in memory at a time


class Columns(NamedTuple):
    """The columns or JSON keys of a row's text and, if the rows name it, of its domain."""

    text: str = "text"
    domain: str | None = None


Row = tuple[str, Text, str | None]  # name, text in UTF-8, domain if the file names it


def rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file whose text is not empty; DataError for a broken file."""
    read = {".txt": _pieces, ".md": _whole, ".parquet": _parquet}.get(path.suffix, _objects)
    with reading(path):
        for row in read(path, columns):
            if row[1]:
                yield row


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the system or of gzip about a path into DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip ({error}); copy or compress it again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); allow it or remove it"
        ) from None


def make_row(values: Mapping[str, Any], columns: Columns, where: str) -> Row:
    """Make a row from values by column; a null text is empty. DataError for other values."""
    text = _string(values, columns.text, where)
    domain = None
    if columns.domain is not None:
        domain = _string(values, columns.domain, where)
        if not domain:
            raise DataError(f'{where}: "{columns.domain}" is empty; give each document a domain')
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f'{where}: "{columns.text}" holds half a surrogate pair (\\ud800 to \\udfff); remove it'
        ) from None
    if 0 in encoded:
        raise DataError(f'{where}: "{columns.text}" holds a NUL character; remove it')
    return where, encoded, domain


def check_columns(names: Sequence[str], columns: Columns, where: str) -> None:
    """Raise DataError if a table lacks a column that the config names."""
    for key, name in columns._asdict().items():
        if name is not None and name not in names:
            raise DataError(
                f'{where}: has no column "{name}"; it has {", ".join(names)}: name one by '
                f"data.{key}_column"
            )


def _string(values: Mapping[str, Any], name: str, where: str) -> str:
    value = values[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'{where}: "{name}" is of type {type(value).__name__}; make it a string')
    return value


# Plain text


def _pieces(path: Path, columns: Columns) -> Iterator[Row]:
    """Pieces of a .txt file, each of whole lines."""
    size = max(1, min(PIECE_BYTES, path.stat().st_size // PIECES))
    offset = 0  # in the file, of the first byte in the buffer
    buffer = bytearray()  # not a list of lines: a line may be as long as the file
    searched = 0  # bytes of the buffer without a line end that could end a piece
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            buffer += block
            begin = 0
            while (cut := buffer.find(b"\n", max(begin + size, searched))) >= 0:
                if cut > BLOCK:  # the piece may fill the memory: do not copy it
                    rest = buffer[cut + 1 :]
                    del buffer[cut + 1 :]
                    yield _checked(buffer, path, offset)
                    buffer, begin, offset, searched = rest, 0, offset + cut + 1, 0
                else:
                    yield _checked(buffer[begin : cut + 1], path, offset + begin)
                    begin = cut + 1
            del buffer[:begin]
            offset += begin
            searched = len(buffer)
        if buffer:
            yield _checked(buffer, path, offset)


def _whole(path: Path, columns: Columns) -> Iterator[Row]:
    yield _checked(bytearray(path.read_bytes()), path, 0)


def _checked(text: bytearray, path: Path, offset: int) -> Row:
    """A row of text, checked to be UTF-8 without NUL; `offset` is its first byte in the file."""
    _check_utf8(text, path, offset)
    if (nul := text.find(b"\0")) >= 0:
        raise DataError(
            f"{path}: byte {offset + nul} is NUL, which no text has; convert the file to UTF-8, or "
            "remove it"
        )
    return f"{path}@{offset}", text, None


def _check_utf8(text: bytearray, path: Path, offset: int) -> None:
    """Raise DataError for text that is not UTF-8. Decodes block by block, to save memory."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(text), BLOCK):
        block = text[begin : begin + BLOCK]
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=begin + BLOCK >= len(text))
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + begin - pending + error.start, error) from None


def _not_utf8(path: Path, place: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}: byte {place} ({error.object[error.start]:#04x}) is not UTF-8; "
        "convert the file to UTF-8"
    )


# Tables


def _objects(path: Path, columns: Columns) -> Iterator[Row]:
    """The lines of a .jsonl or .jsonl.gz file, without blank ones."""
    zipped = path.name.endswith(".gz")
    offset = 0
    with gzip.open(path) if zipped else path.open("rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            try:
                if not line.isspace():
                    yield _object(line, columns, path, number, offset)
            except DataError:
                while zipped and file.read(BLOCK):  # raises if the gzip is what is broken
                    pass
                raise
            offset += len(line)


def _object(line: bytes, columns: Columns, path: Path, number: int, offset: int) -> Row:
    """The row of a line; `offset` is its first byte in the file."""
    where, remedy = f"{path}:{number}", f'write one object with the key "{columns.text}" a line'
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"{where}: is longer than {MAX_LINE_BYTES >> 20} MiB; split the document into several, "
            "or put its text into a .txt file"
        )
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _not_utf8(path, offset + error.start, error) from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{where}: is not JSON ({reason}); {remedy}") from None
    for name in filter(None, columns):
        if not isinstance(values, dict) or name not in values:
            raise DataError(f'{where}: has no key "{name}"; {remedy}')
    return make_row(values, columns, where)


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(file.schema_arrow.names, columns, str(path))
            number = 0
            for batch in file.iter_batches(ROWS, columns=[*filter(None, columns)]):
                for values in batch.to_pylist():
                    number += 1
                    yield make_row(values, columns, f"{path}:{number}")
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: broken Parquet ({reason}); copy or write it again") from None
