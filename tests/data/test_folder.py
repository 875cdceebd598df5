"""A folder of text: its layouts, its splits, and the error for each bad input."""

import gzip
import json
import re
from pathlib import Path

import pytest

from moebench.config.schema import DataConfig
from moebench.data.sources import Document, choose_domains, choose_heldout
from moebench.data.sources.folder import Folder
from moebench.errors import DataError
from tests.data.reading import documents

AVAILABLE = ("alpha", "beta", "gamma")


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def read(root: Path, domain: str) -> dict[str | None, list[str]]:
    """Texts by split; None where content decides."""
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


def test_every_layout(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text(lines("one", "zwölf", "") + "\n")
    (tmp_path / "a" / "more.txt").write_text("three\n")
    (tmp_path / "a" / "valid.jsonl.gz").write_bytes(gzip.compress(lines("four").encode()))
    (tmp_path / "a" / "notes.md").write_text("five\n\nand six\n")
    (tmp_path / "a" / "README.md").write_text("not read")
    (tmp_path / "a" / "readme.txt").write_text("not read")
    (tmp_path / "a" / ".hidden.txt").write_text("not read")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(*map(str, range(200))).encode()))
    (tmp_path / "c.d.txt").write_text("line\n" * 100)
    (tmp_path / "ABOUT.md").write_text("not read")
    (tmp_path / ".git").mkdir()

    assert Folder(str(tmp_path)).domains == ("a", "b", "c.d")
    assert read(tmp_path, "a") == {
        None: ["three\n", "five\n\nand six\n", "one", "zwölf"],
        "train": [],
        "valid": ["four"],
    }
    assert read(tmp_path, "b")[None] == [str(i) for i in range(200)]
    first = documents(Folder(str(tmp_path)), "b")[0]
    assert first == Document(f"{tmp_path}/b.jsonl.gz:1", b"0", "b")


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


def test_fingerprint_follows_the_files_of_its_domains(folder: Path):
    source = Folder(str(folder))
    before = source.fingerprint(["alpha"])
    assert set(before["files"]) == {"alpha/train.jsonl", "alpha/valid.jsonl"}
    (folder / "beta" / "train.jsonl").write_text(lines("changed"))
    assert Folder(str(folder)).fingerprint(["alpha"]) == before
    (folder / "alpha" / "train.jsonl").write_text(lines("changed"))
    assert Folder(str(folder)).fingerprint(["alpha"]) != before


def test_a_folder_that_cannot_be_used(tmp_path: Path):
    file = tmp_path / "file.txt"
    file.write_text("text")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("nowhere", "there is no such folder; create it or correct the path"),
        (
            "file.txt",
            "is a file; give the folder that holds one sub-folder or file per domain",
        ),
        (
            "empty",
            "holds no domain; put text in DIR/<domain>/train.txt or DIR/<domain>.txt "
            "(endings: .txt, .md, .jsonl, .jsonl.gz, .parquet)",
        ),
    ):
        with pytest.raises(DataError, match=re.escape(f"data.path={tmp_path / path}: {message}")):
            Folder(str(tmp_path / path))


def test_a_domain_is_not_taken_for_the_folder_of_domains(tmp_path: Path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text(lines("text"))
    with pytest.raises(DataError, match="'train' is a split, not a domain; put it in a sub-folder"):
        Folder(str(tmp_path))


def test_a_sub_folder_without_text(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.csv").write_text("a,b")
    (tmp_path / "y.txt").write_text("text")
    assert refused(tmp_path) == (
        f"{tmp_path}/x: holds no text (endings: .txt, .md, .jsonl, .jsonl.gz, .parquet); add some, "
        "remove the folder, or pick others by data.domains"
    )


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
        ('"text"', 'has no key "text"; write one object with the key "text" a line'),
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


def test_a_path_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.txt").mkdir()
    assert refused(tmp_path) == (
        f"{tmp_path}/x/train.txt: cannot be read (Is a directory); allow it or remove it"
    )
    (tmp_path / "x" / "valid.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"valid\.txt: cannot be read \(No such file or directory\)"
    ):
        Folder(str(tmp_path)).fingerprint(["x"])


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (
            ["alpha", "gama"],
            "data.domains=[alpha,gama]: the data have no domain 'gama'; did you mean 'gamma'? "
            "They have alpha, beta, gamma",
        ),
        ([], "data.domains=[]: picks no domain; leave it out to take all"),
        (["beta", "beta"], "data.domains=[beta,beta]: names 'beta' twice; name it once"),
    ],
)
def test_domains_that_are_not_there(domains: list[str], message: str):
    with pytest.raises(DataError) as caught:
        choose_domains(DataConfig(domains=domains), AVAILABLE)
    assert str(caught.value) == message


def test_domains_are_sorted_however_they_are_picked():
    """One content hash must mean one sequence of batches."""
    assert choose_domains(DataConfig(domains=["gamma", "alpha"]), AVAILABLE) == ("alpha", "gamma")


def test_held_out_domains_leave_some_to_train_on():
    assert choose_heldout(DataConfig(), AVAILABLE) == ()
    assert choose_heldout(DataConfig(heldout=["gamma", "beta"]), AVAILABLE) == ("beta", "gamma")
    with pytest.raises(DataError, match=r"data\.heldout=\[x\]: the data have no domain 'x'"):
        choose_heldout(DataConfig(heldout=["x"]), AVAILABLE)
    with pytest.raises(DataError, match=r"data\.heldout=\[alpha,beta,gamma\]: leaves no domain"):
        choose_heldout(DataConfig(heldout=[*AVAILABLE]), AVAILABLE)
