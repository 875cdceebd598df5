"""The embedded text: the same everywhere, enough of it, and nothing of this machine in it."""

import os
import subprocess
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import pytest

from moebench.config.schema import DataConfig
from moebench.data.corpus import prepare
from moebench.data.sources import installed
from moebench.data.sources.installed import Installed
from tests.data.reading import documents, texts

SMALL = Installed(train_bytes=150_000, valid_bytes=40_000)

DIGEST = """
import hashlib
from moebench.data.sources.installed import Installed
source = Installed(train_bytes=150_000, valid_bytes=40_000)
print([
    hashlib.sha256(repr(list(source.documents(unit))).encode()).hexdigest()
    for unit in source.units(None)
])
"""

NO_TORCH = """
import sys
from moebench.data import batches, corpus, sources, tokenizer
from moebench.data.sources import document
from moebench.data.sources import folder
from moebench.data.sources import installed
source = sources.Installed(train_bytes=1000, valid_bytes=1000)
source.fingerprint(source.domains)
assert list(source.documents(source.units(["cpp"])[0]))
assert not {"torch", "pandas", "matplotlib", "scipy"} & set(sys.modules)
"""

MODULE = '''
"""A docstring that belongs to English and not to bytecode, long enough to be a sentence or two."""
import os

def find(name):
    if name in {"zebra", "yak", "xerus", "wolf", "vole", ("b", 2), 3, None}:
        return "\\d"
    return lambda: (name, -0.0, 1j, ...)
'''


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of one good module among what must be passed over."""
    root = tmp_path / "library"
    for folder in ("test", "site-packages", "config-3.11-x86_64-linux-gnu"):
        (root / folder).mkdir(parents=True)
        (root / folder / "other.py").write_text("other = 1\n")
    (root / "_sysconfigdata__linux.py").write_text("prefix = '/home/me'\n")
    (root / "bad_syntax.py").write_text("def (:\n")
    (root / "bad_bytes.py").write_bytes(b"x = '\xff'\n")
    (root / "latin.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\n")
    (root / "deep").mkdir()
    (root / "deep" / "good.py").write_text(MODULE)
    monkeypatch.setattr(installed, "_stdlib", lambda: root)
    return root


def test_five_domains_each_with_both_splits():
    assert SMALL.domains == ("bytecode", "cpp", "english", "python", "unicode")
    for domain in SMALL.domains:
        read = documents(SMALL, domain)
        for split, least in (("train", 150_000), ("valid", 40_000)):
            sizes = [len(document.text) for document in read if document.split == split]
            assert least <= sum(sizes) < least + max(sizes)
        names = [document.name for document in read]
        assert len(set(names)) == len(names)
        assert read == documents(SMALL, domain)


def test_no_domain_trains_on_a_module_that_another_validates_on():
    names: dict[str | None, set[str]] = {"train": set(), "valid": set()}
    for domain in ("bytecode", "english", "python"):
        for document in documents(SMALL, domain):
            names[document.split].add(document.name)
    assert names["train"]
    assert not names["train"] & names["valid"]


def test_the_order_of_sets_changes_nothing():
    assert run(DIGEST, PYTHONHASHSEED="1") == run(DIGEST, PYTHONHASHSEED="2")


def test_nothing_heavy_is_imported():
    run(NO_TORCH)


def test_only_readable_modules_of_the_library_count(library: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        python = texts(Installed(), "python")
        disassembled = {document.name for document in documents(Installed(), "bytecode")}
    assert set(python) == {"latin.py", "deep/good.py", "bad_syntax.py"}  # any text may be learned
    assert python["latin.py"].endswith("'é'\n")
    assert disassembled == {"latin.py", "deep/good.py"}


def test_disassembly_says_nothing_of_this_process(library: Path):
    text = texts(Installed(), "bytecode")["deep/good.py"]
    assert "find.<locals>.<lambda>:" in text
    assert "frozenset({'vole', 'wolf', 'xerus', 'yak', 'zebra', ('b', 2), 3, None})" in text
    assert "<code object find>" in text
    assert "0x" not in text
    assert str(library) not in text
    assert "docstring" not in text


def test_docstrings_are_kept_once(library: Path):
    (library / "deep" / "copy.py").write_text(MODULE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = [
            document
            for document in documents(SMALL, "english")
            if b"belongs to English and not to bytecode" in document.text
        ]
        everything = installed._english()
        both = [everything[name]() for name in ("deep/good.py", "deep/copy.py")]
    assert len(kept) <= 1
    assert sorted(map(bool, both)) == [False, True]


def test_every_character_is_there_with_its_name():
    text = "".join(texts(Installed(), "unicode").values())
    lines = set(text.split("\n"))
    points = [point for point in range(sys.maxunicode + 1) if unicodedata.name(chr(point), "")]
    assert len(points) > 130_000
    missing = [p for p in points if f"U+{p:04X} {chr(p)} {unicodedata.name(chr(p))}" not in lines]
    assert not missing


def test_a_long_file_is_cut_at_a_line_end(library: Path):
    line = "x = 1\n"
    (library / "long.py").write_text(line * 10_000)
    python = texts(Installed(), "python")
    assert python["long.py"] == line * (installed.FILE_CHARACTERS // len(line))


def test_fingerprint_names_versions():
    fingerprint = SMALL.fingerprint(SMALL.domains)
    assert sys.version.split()[0] in fingerprint["python"]
    assert set(fingerprint["packages"]) == set(installed.PACKAGES)


def test_one_domain_can_be_prepared_alone():
    corpus = prepare(DataConfig(domains=["unicode"]))
    assert corpus.domains == ("unicode",)
    assert corpus.manifest["source"]["source"] == "installed"
    assert corpus.manifest["domains"]["unicode"]["train"]["bytes"] >= 3e6


@pytest.mark.slow
def test_everything_is_enough_and_quick():
    start = time.process_time()
    corpus = prepare(DataConfig())
    assert time.process_time() - start < 60
    for row in corpus.describe():
        assert float(row["train_mb"]) >= 3, row
        assert float(row["valid_kb"]) >= 200, row
        assert 0.03 < float(row["valid_kb"]) / float(row["train_mb"]) / 1e3 < 0.06, row
    modules: dict[str | None, set[str]] = {"train": set(), "valid": set()}
    for domain in ("bytecode", "python"):
        for document in documents(Installed(), domain):
            modules[document.split].add(document.name)
    assert not modules["train"] & modules["valid"]
