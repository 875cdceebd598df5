"""Files of text, compressed or not: how they are cut, and the error for each broken one."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from moebench.config.schema import DataConfig
from moebench.data.corpus import prepare
from moebench.data.sources import files
from moebench.errors import DataError
from tests.data.reading import TEXT, lines, read, refused

ARRAY = json.dumps([{"text": "one"}, {"text": "zwölf 💡"}, {"text": ""}], indent=1)


def test_text_is_cut_at_line_ends(tmp_path: Path):
    content = "".join(f"line {i} é\n" for i in range(20_000))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.txt").write_text(content)
    (tmp_path / "x" / "valid.txt").write_text("one line without an end")
    read_back = read(tmp_path, "x")
    assert "".join(read_back[None]) == content
    assert all(piece.endswith("\n") for piece in read_back[None])
    assert all(abs(len(p.encode()) - len(content.encode()) / 40) < 20 for p in read_back[None][:-1])
    assert read_back["valid"] == ["one line without an end"]


def test_large_text_is_cut_into_pieces_of_16_kb(tmp_path: Path):
    (tmp_path / "x.txt").write_text("a line of text\n" * 100_000)
    sizes = [len(text) for texts in read(tmp_path, "x").values() for text in texts]
    assert max(sizes) < 16_384 + 15
    assert sorted(sizes)[1] >= 16_384


@pytest.mark.parametrize("broken", ["cut", "not gzip", "damaged"])
def test_broken_gzip(tmp_path: Path, broken: str):
    whole = gzip.compress(lines(*(f"document {i}" for i in range(1000))).encode())
    middle = len(whole) // 2
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(
        {
            "cut": whole[:middle],
            "not gzip": b"plain text",
            "damaged": whole[:middle] + bytes(64) + whole[middle + 64 :],
        }[broken]
    )
    message = refused(tmp_path)
    assert message.startswith(f"{path}: broken gzip (")
    assert message.endswith("); copy or compress it again")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "is not JSON (Expecting ',' delimiter); "),
        ("[" * 100_000, "is not JSON ("),
        ('{"txt": "a"}', 'has no key "text"; write one object with the key "text" a line'),
        ('"text"', 'is of type str, and no object; write one object with the key "text" a line'),
        ("[1, 2, 3]", "is of type list, and no object; "),
        ('{"text": ["a"]}', '"text" is of type list; make it a string'),
        (
            '{"text": "\\ud800"}',
            '"text" holds half a surrogate pair (\\ud800 to \\udfff); remove it',
        ),
    ],
)
def test_broken_lines(tmp_path: Path, line: str, message: str):
    (tmp_path / "x.jsonl").write_text(lines("good") + "\n" + line + "\n")
    assert refused(tmp_path).startswith(f"{tmp_path}/x.jsonl:3: {message}")


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.jsonl.gz"])
def test_bytes_that_are_not_utf8(tmp_path: Path, name: str):
    data = lines("é" * 50_000).encode() + lines("gut").encode() + b'{"text": "\xe9"}\n'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    offset = data.rindex(bytes([0xE9]))
    assert refused(tmp_path) == (
        f"{tmp_path}/{name}: byte {offset} (0xe9) is not UTF-8; convert the file to UTF-8"
    )


def zst(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("ending", "content", "joined"),
    [
        (".txt", TEXT, TEXT),
        (".md", TEXT, TEXT),
        (".jsonl", lines("one", "zwölf 💡"), "onezwölf 💡"),
        (".json", lines("one", "zwölf 💡"), "onezwölf 💡"),
        (".json", ARRAY, "onezwölf 💡"),
    ],
)
def test_every_ending_compressed_or_not(
    tmp_path: Path, bom: bytes, ending: str, content: str, joined: str
):
    data = bom + content.encode()
    (tmp_path / "x").mkdir()
    for name, written in (
        (ending, data),
        (f"{ending}.gz", gzip.compress(data)),
        (f"{ending.upper()}.zst", zst(data)),
    ):
        path = tmp_path / "x" / f"all{name}"
        path.write_bytes(written)
        texts = read(tmp_path, "x")[None]
        assert "".join(texts) == joined
        assert len(texts) == {".txt": 37, ".md": 1}.get(ending, 2)
        path.unlink()


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_number_beside_the_text_may_be_of_any_length(tmp_path: Path, name: str):
    row = '{"text": "one", "number": 1%s, "about": "text"}' % ("0" * 10_000)
    (tmp_path / name).write_text(f"[{row}]" if name == "x.json" else row)
    assert read(tmp_path, "x")[None] == ["one"]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_an_array_is_read_object_by_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
):
    monkeypatch.setattr(files, "BLOCK", block)
    (tmp_path / "x.json").write_text(ARRAY)
    assert read(tmp_path, "x")[None] == ["one", "zwölf 💡"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"} {"text": "b"}]', "has no , where one must be"),
        (b'[{"text": "a"},]', "item 2: is not JSON (Expecting value)"),
        (b'[{"text": "a"}', "has no , where one must be"),
        (b'[{"text": "a"}] 5', "has more after its array"),
        (b'[{"text": "a"}, 5]', "item 2: is of type float, and no object"),
        (b'[{"text": "\xff"}]', "byte 11 (0xff) is not UTF-8"),
        (b'[{"text": "a", "text": "b"}]', 'item 1: has the key "text" twice; leave one'),
    ],
)
def test_broken_arrays(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x.json").write_bytes(content)
    assert message in refused(tmp_path)


def test_a_text_without_line_ends_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 1 << 20)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(bytes([97]) * (3 << 20)))
    assert refused(tmp_path) == (
        f"{tmp_path}/x.txt.gz: from byte 0 on, it has more than 1 MiB without a line end; break it "
        "into lines"
    )


def test_rows_of_parquet_are_read_as_the_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One large value that many rows share is stored once, and in memory once a row."""
    monkeypatch.setattr(files, "MAX_BATCH_BYTES", 3 << 20)
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["ab" * (1 << 19)] * 10}), path)
    with pyarrow.parquet.ParquetFile(path) as file:
        assert files._rows_at_a_time(file.metadata.row_group(0), ["text"]) == 2
    assert len(read(tmp_path, "x")[None]) == 10


def test_two_columns_or_keys_of_one_name(tmp_path: Path):
    table = pyarrow.table([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text"] * 2)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert refused(tmp_path) == f'{tmp_path}/x.parquet: has 2 columns "text"; rename all but one'
    (tmp_path / "x.parquet").unlink()
    (tmp_path / "x.jsonl").write_text('{"text": "text"}\n{"text": "one", "text": "two"}\n')
    assert refused(tmp_path) == f'{tmp_path}/x.jsonl:2: has the key "text" twice; leave one'


@pytest.mark.parametrize("values", [[], [None] * 9, [""] * 9])
def test_a_table_without_text(tmp_path: Path, values: list[str | None]):
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "x.parquet")
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(source="folder", path=str(tmp_path)))
    assert str(caught.value) == (
        f"data.path={tmp_path}: domain 'x' has no text, as all its files or rows are empty or "
        "null; add text to it, remove it, or name another column by data.text_column"
    )
