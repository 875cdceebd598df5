"""An object of JSON whose text fills the memory, read in the memory of that text.

A parser needs the line and the string that it makes of it at once, and an encoder one more. Here
the long strings of a line are left where they are: what is around them is parsed, and the one that
is wanted is decoded in its place, block by block, as JSON writes no character shorter than UTF-8.
"""

import json
import re
from typing import Any, NamedTuple
from uuid import uuid4

LONG = 1 << 16  # bytes from which a string stays in the line
BLOCK = 1 << 20  # bytes that are decoded at a time; more than two escapes are long

STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")  # the first half of a surrogate pair
ESCAPE = 12  # bytes of the longest escape, a surrogate pair


class LongString(NamedTuple):
    """Where a string of a line lies, without its quotation marks."""

    begin: int
    end: int


def loads(line: bytearray) -> Any:
    """The value of a line in UTF-8; the long strings of an object are a LongString.

    Raises ValueError or RecursionError if it is no JSON; what is in long strings is not looked at.
    """
    token = uuid4().hex  # no string of the line is this
    around, places, done = bytearray(), {}, 0
    for match in STRING.finditer(line):
        begin, end = match.span()
        if end - begin > LONG:
            name = f"{token}{len(places)}"
            places[name] = LongString(begin + 1, end - 1)
            around += line[done:begin] + f'"{name}"'.encode()
            done = end
    around += line[done:]

    def restored(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            key: places.get(value, value) if isinstance(value, str) else value
            for key, value in pairs
        }

    return json.loads(around, object_pairs_hook=restored)


def decode(line: bytearray, string: LongString) -> bytearray:
    """What a long string of a line says, in UTF-8: the line itself, of which nothing else is left.

    Raises ValueError for an escape or a control character that JSON does not have, and
    UnicodeEncodeError, which is one, for half a surrogate pair.
    """
    done, begin = 0, string.begin
    while begin < string.end:
        end = _cut(line, begin, begin + BLOCK) if begin + BLOCK < string.end else string.end
        text = json.loads((b'"%b"' % line[begin:end]).decode()).encode()
        line[done : done + len(text)] = text  # never longer than what it stands for
        done, begin = done + len(text), end
    del line[done:]
    return line


def _cut(line: bytearray, begin: int, end: int) -> int:
    """A place at or before `end`, and near it, that is within no character and no escape."""
    while line[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    last = line.rfind(b"\\", end - ESCAPE, end)
    if last < 0:
        return end
    if not _begins_escape(line, begin, last):
        return last + 1
    first = last - 6
    paired = HIGH.fullmatch(line, first, last) and _begins_escape(line, begin, first)
    return first if paired else last


def _begins_escape(line: bytearray, begin: int, place: int) -> bool:
    """Whether a backslash is the first of two, as every other one in a row of them is."""
    row = line[begin : place + 1]
    return (len(row) - len(row.rstrip(b"\\"))) % 2 == 1
