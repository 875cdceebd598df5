"""Read documents from a file: plain text, Markdown, JSON or Parquet.

    .txt      cut at line ends into documents of about 16 kB, or a fortieth of a small file
    .md       one document
    .jsonl    one document a line: an object with the text under a key
    .json     the same, or one array of such objects
    .parquet  one document a row, with the text in a column

All but Parquet may also be compressed, with .gz or .zst after the ending. The case of an ending
does not matter. A byte order mark at the beginning of a file is no part of its text.

Nothing is guessed about a file's content. Bytes that are not UTF-8, a NUL (a sign of UTF-16 or of a
binary file), a missing column and a broken file are errors that name the place. What is in memory
at a time is bounded.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from moebench.data.sources.document import Text
from moebench.disk import open_regular, reason, regular_status, unpacked
from moebench.errors import DataError

ENDINGS = (".txt", ".md", ".jsonl", ".json")
PACKED = (".gz", ".zst")
PARQUET = ".parquet"
ENDINGS_IN_WORDS = f"{', '.join(ENDINGS)}, these with {' or '.join(PACKED)}, and {PARQUET}"
PIECE_BYTES = 16_384  # of a .txt file
PIECES = 40  # at least, of a small .txt file with enough lines
BLOCK = 1 << 20  # bytes that are read or checked at a time
MAX_LINE_BYTES = 1 << 26  # of JSON; parsing a line can take twenty times its memory
MAX_DOCUMENT_BYTES = 1 << 27  # of plain text without a line end
BOMB_BYTES = 1 << 26  # of text that a file may hold whatever its own size
BOMB_RATIO = 100  # bytes of text to a byte of a larger file; text compresses to a tenth at best
MAX_BATCH_BYTES = 1 << 30  # of rows of a Parquet file that are in memory at a time
ARRAY = "write one array of objects, or one object a line"
SPACE = re.compile(r"[ \t\r\n]*")
JSON = json.JSONDecoder(parse_int=float)  # `int` refuses more than 4300 digits
ROWS = 256  # of a Parquet file that are in memory at a time, at most


class Columns(NamedTuple):
    """The columns or JSON keys of a row's text and, if the rows name it, of its domain."""

    text: str = "text"
    domain: str | None = None


Row = tuple[str, Text, str | None]  # name, text in UTF-8, domain if the file names it


def ending(name: str) -> str:
    """The ending of a file that can be read, in lower case, as in .txt.gz; "" for another file."""
    lowered = name.lower()
    if lowered.endswith(PARQUET):
        return PARQUET
    packed = next(filter(lowered.endswith, PACKED), "")
    plain = next(filter(lowered.removesuffix(packed).endswith, ENDINGS), "")
    return plain + packed if plain else ""


def rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file whose text is not empty; DataError for a broken file."""
    kind, total = Path(ending(path.name)).stem or ending(path.name), 0
    with reading(path):
        most = max(BOMB_BYTES, BOMB_RATIO * regular_status(path).st_size)
        made = _parquet if kind == PARQUET else partial(_unpacked_rows, kind)
        for row in made(path, columns):
            total += len(row[1]) or 1
            if total > most:
                raise DataError(
                    f"{path}: unpacks to more than {BOMB_RATIO} times its size, which no text "
                    "does; remove it"
                )
            if row[1]:
                yield row


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the system or of a decompressor about a path into DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}); make it a file that you may read, or "
            "remove it"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; copy or compress it again") from None


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
        if names.count(name or "") > 1:
            raise DataError(
                f'{where}: has {names.count(name or "")} columns "{name}"; rename all but one'
            )


def _string(values: Mapping[str, Any], name: str, where: str) -> str:
    value = values[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'{where}: "{name}" is of type {type(value).__name__}; make it a string')
    return value


def _unpacked_rows(kind: str, path: Path, columns: Columns) -> Iterator[Row]:
    with unpacked(path) as file:
        begin = file.read(PIECES * PIECE_BYTES)
    offset = len(codecs.BOM_UTF8) if begin.startswith(codecs.BOM_UTF8) else 0
    with unpacked(path) as file:
        file.read(offset)
        if kind == ".txt":
            yield from _pieces(path, file, offset, max(1, len(begin) // PIECES))
        elif kind == ".md":
            yield _whole(path, file, offset)
        elif kind == ".json" and begin[offset:].lstrip().startswith(b"["):
            yield from _array(path, file, offset, columns)
        else:
            yield from _objects(path, file, offset, columns)


# Plain text


def _pieces(path: Path, file: IO[bytes], offset: int, size: int) -> Iterator[Row]:
    """Pieces of a .txt file, each of whole lines.

    Args:
        offset: in the file, of the first byte to read.
        size: bytes of a piece, at least.
    """
    buffer = bytearray()  # not a list of lines: a line may be as long as the file
    searched = 0  # bytes of the buffer without a line end that could end a piece
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
        _check_size(buffer, path, offset, "without a line end; break it into lines")
    if buffer:
        yield _checked(buffer, path, offset)


def _whole(path: Path, file: IO[bytes], offset: int) -> Row:
    text = bytearray()
    while block := file.read(BLOCK):
        text += block
        _check_size(text, path, offset, "in one document; split it into several")
    return _checked(text, path, offset)


def _check_size(text: bytearray, path: Path, offset: int, remedy: str) -> None:
    if len(text) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path}: from byte {offset} on, it has more than {MAX_DOCUMENT_BYTES >> 20} MiB "
            f"{remedy}"
        )


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


def _objects(path: Path, file: IO[bytes], offset: int, columns: Columns) -> Iterator[Row]:
    """The lines of a JSON lines file, without blank ones; `offset` is that of the first."""
    remedy = f'write one object with the key "{columns.text}" a line'
    for number in count(1):
        line, where = file.readline(MAX_LINE_BYTES + 1), f"{path}:{number}"
        if not line:
            return
        try:
            if len(line) > MAX_LINE_BYTES:
                raise _too_long(where)
            if not line.isspace():
                yield _row(_parsed(line, path, where, offset, remedy), line, columns, where, remedy)
        except DataError:
            for _ in range(MAX_LINE_BYTES // BLOCK):  # raises if the compression is what is broken
                if not file.read(BLOCK):
                    break
            raise
        offset += len(line)


def _parsed(line: bytes, path: Path, where: str, offset: int, remedy: str) -> Any:
    try:
        return JSON.decode(line.decode())
    except UnicodeDecodeError as error:
        raise _not_utf8(path, offset + error.start, error) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(where, error, remedy) from None


def _row(values: Any, text: bytes | str, columns: Columns, where: str, remedy: str) -> Row:
    """The row of a JSON value that was parsed from `text`; DataError if it is not one object."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: is of type {type(values).__name__}, and no object; {remedy}")
    for name in filter(None, columns):
        if name not in values:
            raise DataError(f'{where}: has no key "{name}"; {remedy}')
        quoted = json.dumps(name, ensure_ascii=False)
        if text.count(quoted.encode() if isinstance(text, bytes) else quoted) > 1:  # pyright: ignore
            json.loads(text, parse_int=float, object_pairs_hook=partial(_check_once, name, where))
    return make_row(values, columns, where)


def _check_once(name: str, where: str, pairs: Sequence[tuple[str, Any]]) -> None:
    """Raise DataError if an object has a key twice: JSON would silently take the second."""
    if sum(key == name for key, _ in pairs) > 1:
        raise DataError(f'{where}: has the key "{name}" twice; leave one')


def _not_json(where: str, error: Exception, remedy: str) -> DataError:
    why = error.msg if isinstance(error, json.JSONDecodeError) else error
    return DataError(f"{where}: is not JSON ({why}); {remedy}")


def _too_long(where: str) -> DataError:
    return DataError(
        f"{where}: is longer than {MAX_LINE_BYTES >> 20} MiB; split the document into several, "
        "or put its text into a .txt file"
    )


def _array(path: Path, file: IO[bytes], offset: int, columns: Columns) -> Iterator[Row]:
    """The objects of a JSON array, of which one is in memory at a time."""
    json_text, number = _JsonText(path, file, offset), 0
    json_text.take("[")
    while json_text.next() != "]":
        if number:
            json_text.take(",")
        number += 1
        where = f"{path}, item {number}"
        values, text = json_text.value(where)
        yield _row(values, text, columns, where, ARRAY)
    json_text.take("]")
    if json_text.next():
        raise DataError(f"{path}: has more after its array; {ARRAY}")


class _JsonText:
    """JSON that is read value by value; `offset` is that of its first byte in the file."""

    def __init__(self, path: Path, file: IO[bytes], offset: int):
        self.path, self.file, self.offset = path, file, offset
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""  # a part of the content
        self.at = 0  # of the next character in it

    def next(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self.at = cast(re.Match, SPACE.match(self.text, self.at)).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._grow():
                return ""

    def take(self, mark: str) -> None:
        """Skip a mark; DataError if another character comes next."""
        if self.next() != mark:
            raise DataError(f"{self.path}: has no {mark} where one must be; {ARRAY}")
        self.at += 1

    def value(self, where: str) -> tuple[Any, str]:
        """The next value, and its text."""
        self.next()
        while True:
            try:
                value, end = JSON.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at > MAX_LINE_BYTES:
                    raise _too_long(where) from None
                if not self._grow():
                    raise _not_json(where, error, ARRAY) from None
            else:
                begin, self.at = self.at, end
                return value, self.text[begin:end]

    def _grow(self) -> bool:
        """Read as much again as is left, to try again at a bounded cost; False at the end."""
        rest, pending = self.text[self.at :], len(self.decoder.getstate()[0])
        block = self.file.read(max(BLOCK, len(rest)))
        try:
            self.text, self.at = rest + self.decoder.decode(block, final=not block), 0
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, self.offset - pending + error.start, error) from None
        self.offset += len(block)
        return bool(block)


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            open_regular(path) as opened,
            pyarrow.parquet.ParquetFile(opened, pre_buffer=False, buffer_size=BLOCK) as file,
        ):
            check_columns(file.schema_arrow.names, columns, str(path))
            names, number = [*filter(None, columns)], 0
            for group in range(file.num_row_groups):
                size = _rows_at_a_time(file.metadata.row_group(group), names)
                for batch in file.iter_batches(size, row_groups=[group], columns=names):
                    for values in batch.to_pylist():
                        number += 1
                        yield make_row(values, columns, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: broken Parquet ({reason(error)}); write it again") from None


def _rows_at_a_time(group: Any, names: Sequence[str]) -> int:
    """How many rows of a group fit the memory, if each were as large as a whole column.

    A value that occurs in many rows may be stored once, so the mean size of a row says nothing.
    """
    columns = (group.column(index) for index in range(group.num_columns))
    sizes = [column.total_uncompressed_size for column in columns if column.path_in_schema in names]
    return max(1, min(ROWS, MAX_BATCH_BYTES // max([1, *sizes])))
