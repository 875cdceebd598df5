"""Long strings of JSON decoded in their place, against the parser of the standard library."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.data.sources import files, long_json
from moebench.data.sources.files import Columns, rows
from moebench.data.sources.long_json import LongString, decode, loads
from moebench.errors import DataError

PIECES = ["a", "é", "漢", "😀", "\\", '"', "\n", "/", "\x7f", " ", "u", "d83d", "\u2028"]
texts = st.lists(st.sampled_from(PIECES), max_size=400).map("".join)


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Blocks so small that every text is of many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "BLOCK", 32)
        patch.setattr(long_json, "LONG", 40)
        patch.setattr(files, "BLOCK", 32)
        patch.setattr(files, "LONG_LINE", 64)
        yield


def in_place(line: bytes) -> str:
    own = bytearray(line)
    text = loads(own)["text"]
    return decode(own, text).decode() if isinstance(text, LongString) else text


@given(text=texts, ascii=st.booleans(), before=texts, after=texts)
def test_it_reads_what_json_writes(text: str, ascii: bool, before: str, after: str):
    value = {"before": before, "text": text, before: [after], "after": {"text": after}}
    line = json.dumps(value | {"text": text}, ensure_ascii=ascii).encode()
    assert in_place(line) == json.loads(line)["text"]


@given(
    raw=st.lists(
        st.sampled_from(["\\\\", "\\n", "\\u00e9", "\\ud83d\\ude00", "x", "é"]), min_size=30
    )
)
def test_no_cut_goes_through_an_escape(raw: list[str]):
    line = f'{{"text": "{"".join(raw)}"}}'
    assert in_place(line.encode()) == json.loads(line)["text"]


def test_a_row_of_backslashes_longer_than_a_block():
    for number in range(40, 60):
        text = "\\" * number + "n" + "\\" * 50 + "\n😀"
        assert in_place(json.dumps({"text": text}).encode()) == text


def long_lines(path: Path, *lines: bytes) -> list[tuple[bytes, str | None]]:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return [(bytes(text), domain) for _, text, domain in rows(path, Columns(domain="of"))]


def test_long_and_short_lines_of_a_file(tmp_path: Path):
    lines = [b'{"text": "%b", "of": "x"}' % (b"ab\\n" * size) for size in (1, 30, 2, 400)]
    found = long_lines(tmp_path / "a.jsonl", *lines)
    assert found == [(b"ab\n" * size, "x") for size in (1, 30, 2, 400)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\\x", "is not JSON (Invalid \\escape"),
        (b"\x01", "is not JSON (Invalid control character"),
        (b"\\ud83d!", "holds half a surrogate pair"),
        (b"\\u0000", "holds a NUL character"),
        (b"\xff", "a.jsonl: byte 109 (0xff) is not UTF-8"),
        (b'", "of": 3, "more": "', '"of" is of type int; make it a string'),
        (b'", "text": ', "a.jsonl:1: is not JSON ("),
    ],
)
def test_what_is_wrong_in_a_long_text(tmp_path: Path, text: bytes, said: str):
    line = b'{"of": "x", "text": "%b%b%b"}' % (b"_" * 88, text, b"_" * 88)
    with pytest.raises(DataError) as refused:
        long_lines(tmp_path / "a.jsonl", line)
    assert said in str(refused.value)
