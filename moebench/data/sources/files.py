"""Documents of a file: plain text, Markdown, JSON lines or Parquet.

    .txt               cut at line ends into documents of about 16 kB, or a fortieth of a small file
    .md                one document
    .jsonl, .jsonl.gz  one document a line: an object with the text under a key
    .parquet           one document a row, its text in a column

What a file holds besides text is never guessed: bytes that are not UTF-8, a NUL (a sign of UTF-16
or of no text at all), a column that is not there and a broken file are errors that say where.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from moebench.data.sources import long_json
from moebench.data.sources.document import Text
from moebench.data.sources.long_json import LongString
from moebench.errors import DataError

ENDINGS = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")
PIECE_BYTES = 16_384  # of a .txt file
PIECES = 40  # at least, of a small .txt file with enough lines
BLOCK = 1 << 20  # bytes that are read or checked at a time
LONG_LINE = 1 << 24  # bytes from which a line of JSON is parsed in its place
ROWS = 256  # of a Parquet file that are in memory at a time


class Columns(NamedTuple):
    """Where the text of a row or JSON object lies, and its domain if that is written there."""

    text: str = "text"
    domain: str | None = None


Row = tuple[str, Text, str | None]  # name, text in UTF-8, domain if the file says it


def rows(path: Path, columns: Columns) -> Iterator[Row]:
    """What a file holds, empty texts left out; DataError where it is broken."""
    read = {".txt": _pieces, ".md": _whole, ".parquet": _parquet}.get(path.suffix, _objects)
    with reading(path):
        for row in read(path, columns):
            if row[1]:
                yield row


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system or gzip say about a path, as DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken gzip ({error}); copy or compress it again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); allow it or remove it"
        ) from None


def row_of(values: Mapping[str, Any], columns: Columns, where: str) -> Row:
    """The row that values by column make; null is empty text. DataError where they are no text."""
    text = _string(values, columns.text, where)
    domain = None
    if columns.domain is not None:
        domain = _string(values, columns.domain, where)
        if not domain:
            raise DataError(f'{where}: "{columns.domain}" is empty; give each document a domain')
    return _row(text.encode, domain, columns, where)


def _row(encode: Callable[[], Text], domain: str | None, columns: Columns, where: str) -> Row:
    try:
        text = encode()
    except UnicodeEncodeError:
        raise DataError(
            f'{where}: "{columns.text}" holds half a surrogate pair (\\ud800 to \\udfff); remove it'
        ) from None
    if 0 in text:
        raise DataError(f'{where}: "{columns.text}" holds a NUL character; remove it')
    return where, text, domain


def check_columns(names: Sequence[str], columns: Columns, where: str) -> None:
    """Raise DataError if a table does not have the columns that are asked for."""
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


def _pieces(path: Path, columns: Columns) -> Iterator[Row]:
    """Pieces of a .txt file, each of whole lines."""
    size = max(1, min(PIECE_BYTES, path.stat().st_size // PIECES))
    offset = 0
    held = bytearray()  # one buffer and no list of lines: a line may be as long as the file
    looked = 0  # bytes of it that hold no line end where a piece may end
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            held += block
            begin = 0
            while (cut := held.find(b"\n", max(begin + size, looked))) >= 0:
                if cut > BLOCK:  # it may fill the memory: no copy of it is made
                    rest = held[cut + 1 :]
                    del held[cut + 1 :]
                    yield _checked(held, path, offset)
                    held, begin, offset, looked = rest, 0, offset + cut + 1, 0
                else:
                    yield _checked(held[begin : cut + 1], path, offset + begin)
                    begin = cut + 1
            del held[:begin]
            offset += begin
            looked = len(held)
        if held:
            yield _checked(held, path, offset)


def _whole(path: Path, columns: Columns) -> Iterator[Row]:
    yield _checked(bytearray(path.read_bytes()), path, 0)


def _checked(text: bytearray, path: Path, offset: int) -> Row:
    """A row of text whose bytes are good."""
    _check_utf8(text, path, offset)
    if (nul := text.find(b"\0")) >= 0:
        raise DataError(
            f"{path}: byte {offset + nul} is NUL, which no text has; convert the file to UTF-8, or "
            "remove it"
        )
    return f"{path}@{offset}", text, None


def _check_utf8(text: bytearray, path: Path, offset: int) -> None:
    """Decode it block by block, to save memory; DataError where that fails."""
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


def _objects(path: Path, columns: Columns) -> Iterator[Row]:
    """The lines of a .jsonl or .jsonl.gz file; blank ones are passed over."""
    offset = 0
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        for number in count(1):
            line: Text = file.readline(LONG_LINE)
            if len(line) == LONG_LINE:
                line = bytearray(line)
                while not line.endswith(b"\n") and (more := file.readline(BLOCK)):
                    line += more
            size = len(line)
            if not size:
                return
            try:
                if not line.isspace():
                    yield _object(line, (path, number, offset), columns)
            except DataError:
                for _ in file:  # if gzip is what broke the line, it says so by the end
                    pass
                raise
            offset += size
            del line  # it may fill the memory


def _object(line: Text, place: tuple[Path, int, int], columns: Columns) -> Row:
    """The row that a line is, of which a bytearray is used up; place is path, line, first byte."""
    path, number, offset = place
    where, remedy = f"{path}:{number}", f'write one object with the key "{columns.text}" a line'
    try:
        if isinstance(line, bytearray):
            _check_utf8(line, path, offset)
            value = long_json.loads(line)
        else:
            value = json.loads(line.decode())
        for name in filter(None, columns):
            if not isinstance(value, dict) or name not in value:
                raise DataError(f'{where}: has no key "{name}"; {remedy}')
        text = value[columns.text]
        if isinstance(line, bytearray) and isinstance(text, LongString):
            _, _, domain = row_of(value | {columns.text: ""}, columns, where)
            return _row(lambda: long_json.decode(line, text), domain, columns, where)
        return row_of(value, columns, where)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, offset + error.start, error) from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{where}: is not JSON ({reason}); {remedy}") from None


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
                    yield row_of(values, columns, f"{path}:{number}")
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: broken Parquet ({reason}); copy or write it again") from None
