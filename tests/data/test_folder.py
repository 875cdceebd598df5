"""A folder of text: its layouts, its splits, and the error for each bad input."""

import gzip
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest

from moebench.config.schema import DataConfig
from moebench.data.corpus import prepare
from moebench.data.sources import Document, choose_domains, choose_heldout
from moebench.data.sources.document import Unit
from moebench.data.sources.files import ENDINGS_IN_WORDS, Columns
from moebench.data.sources.folder import Folder
from moebench.errors import DataError, Several
from tests.data.reading import TEXT, documents, lines, read, refused

AVAILABLE = ("alpha", "beta", "gamma")


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
            "(endings: .txt, .md, .jsonl, .json, these with .gz or .zst, and .parquet)",
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
        f"{tmp_path}/x: holds no text (endings: {ENDINGS_IN_WORDS}); add some, remove the "
        "folder, or pick others by data.domains"
    )


def test_a_path_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "valid.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"valid\.txt: cannot be read \(No such file or directory\)"
    ):
        Folder(str(tmp_path)).fingerprint(["x"])


def test_only_regular_files_are_read(tmp_path: Path):
    """A pipe would wait for its writer, and a device may never end."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "valid.txt").write_text("text")
    os.mkfifo(tmp_path / "a" / "train.txt")
    (tmp_path / "b" / "train.txt").symlink_to("/dev/zero")
    (tmp_path / "LICENSE").symlink_to("/dev/zero")
    source = Folder(str(tmp_path))
    with pytest.raises(Several) as caught:
        source.fingerprint(None)
    assert caught.value.lines == tuple(
        f"{tmp_path}/{name}/train.txt: cannot be read (is not a regular file); make it a file that "
        "you may read, or remove it"
        for name in ("a", "b")
    )
    with pytest.raises(Several):
        list(source.documents(Unit(("a/train.txt", "b/train.txt"), 1)))
    assert source.licences(["a"]) == {"a": ""}


def test_folders_in_a_domain_are_read_and_what_is_left_out_is_named(tmp_path: Path):
    for name in ("law/2024/y.txt", "law/valid/v.txt", "law/A.TXT", "law/x.py", "law/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "law" / "loop").symlink_to(tmp_path / "law")
    (tmp_path / "NOTES.md").write_text("not read")
    (tmp_path / "LICENSE").write_text("CC0")
    (tmp_path / "Makefile").write_text("not read")
    assert read(tmp_path, "law") == {
        None: ["law/2024/y.txt", "law/A.TXT"],
        "train": [],
        "valid": ["law/valid/v.txt"],
    }
    assert Folder(str(tmp_path)).notes == (
        f"data.path={tmp_path}: leaves out files: "
        "1 about the text (law/README.md), "
        "1 behind a link to a folder that is read already (law/loop), "
        "1 beside the domains, in Markdown (NOTES.md), "
        "1 with the ending .py (law/x.py), 1 without an ending (Makefile)",
    )


def test_a_licence_is_no_domain_and_no_text(tmp_path: Path):
    names = ("LICENSE.txt", "LICENSE_MIT.txt", "COPYING_GPL.txt", "NOTICE.txt", "README_de.txt")
    for name in (*names, "law/Licence-MIT.md", "law/x.txt", "license_texts.txt", "notices.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    source = Folder(str(tmp_path))
    assert source.domains == ("law", "license_texts", "notices")
    assert read(tmp_path, "law")[None] == ["law/x.txt"]
    licences = {"law": "law/Licence-MIT.md", "license_texts": "COPYING_GPL.txt"}
    assert source.licences(("law", "license_texts")) == licences
    note = "leaves out files: 4 with a licence (COPYING_GPL.txt), 2 about the text (NOTICE.txt)"
    assert source.notes == (f"data.path={tmp_path}: {note}",)


def test_training_text_that_is_called_test_is_named(tmp_path: Path):
    names = ("a/train", "a/valid", "a/test", "a/dev", "a/valid/test", "b/test/x", "b/val", "test")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(lines(name))
    [note] = Folder(str(tmp_path)).notes
    assert note == (
        f"data.path={tmp_path}: trains on a/dev.jsonl, a/test.jsonl, b/test/x.jsonl and 1 more; "
        'call a file or folder for validation "valid", and move away what is not to be read'
    )
    assert read(tmp_path, "a")[None] == ["a/dev", "a/test", "a/train"]
    [note] = Folder(str(tmp_path), Columns("text", "of")).notes
    assert "b/test/x.jsonl and 2 more;" in note


def test_the_cache_is_no_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x" / "cache").mkdir(parents=True)
    for folder in ("cache", "x/cache"):
        monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / folder))
        (tmp_path / "x" / "x.txt").write_text(TEXT)
        (tmp_path / folder / "kept").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "kept" / "tokenizer.json").write_text("[]")
        source = Folder(str(tmp_path))
        assert set(source.fingerprint(["x"])["files"]) == {"x/x.txt"}
        assert (source.domains, source.notes) == (("x",), ())
        shutil.rmtree(tmp_path / folder)
    monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"is moebench's cache; name the folder of your text"):
        Folder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\tb.txt", ": 'a\\tb' cannot be the name of a domain"),
        (os.fsdecode(b"a\xff.txt"), ": 'a\\udcff' cannot be the name of a domain"),
        (
            os.fsdecode(b"x/a\xff.txt"),
            os.fsdecode(b"/x/a\xff.txt: its name is not UTF-8; rename it"),
        ),
        (os.fsdecode(b"d\xff/x.txt"), ": its name is not UTF-8; rename it"),
    ],
)
def test_names_that_no_domain_or_cache_can_have(tmp_path: Path, name: str, message: str):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(TEXT)
    root = path.parent if path.parent.name.startswith("d") else tmp_path
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(source="folder", path=str(root)))
    assert message in str(caught.value)


def test_the_errors_of_several_files_and_domains_are_said_at_once(tmp_path: Path):
    text = tmp_path / "text"
    text.mkdir()
    for name, content in (("a.txt", b"\xff"), ("b.txt", b"\0"), ("c.jsonl", b"{")):
        (text / name).write_bytes(content)
    config = DataConfig(source="folder", path=str(text))
    with pytest.raises(Several) as caught:
        prepare(config)
    names = [Path(line.split(":")[0]).name for line in caught.value.lines]
    assert names == ["a.txt", "b.txt", "c.jsonl"]
    (text / "c.jsonl").unlink()
    for name in ("a", "b"):
        (text / f"{name}.txt").write_text("one line")
    with pytest.raises(Several) as caught:
        prepare(config)
    assert len(caught.value.lines) == 2
    assert pickle.loads(pickle.dumps(caught.value)).lines == caught.value.lines


def test_many_errors_are_counted():
    errors = Several([DataError(str(number)) for number in range(1000)])
    assert errors.lines[-2:] == ("19", "and 980 more like these")


def test_few_documents_for_validation_are_a_warning(tmp_path: Path):
    (tmp_path / "text" / "x").mkdir(parents=True)
    (tmp_path / "text" / "x" / "train.txt").write_text(TEXT)
    config = DataConfig(source="folder", path=str(tmp_path / "text"))
    warning = "fewer than 10 documents for validation: x (3)"
    for count, warned in ((3, True), (10, False)):
        valid = lines(*(f"text {number}" for number in range(count)))
        (tmp_path / "text" / "x" / "valid.jsonl").write_text(valid)
        for _ in ("made", "cached"):
            said: list[str] = []
            prepare(config, progress=said.append)
            assert any(warning in each for each in said) == warned


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
