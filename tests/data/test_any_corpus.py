"""Sources beside folders, tokenizers beside bytes, and a preparation that is cut short."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from moebench.config.compose import Composer
from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus, prepare
from moebench.data.making import shards
from moebench.data.sources import files
from moebench.data.sources.synthetic import Synthetic
from moebench.data.tokenizer import Subwords, train_bpe
from moebench.disk import replacing
from moebench.errors import ConfigError, DataError
from tests.data.reading import documents


def refused(config: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_of_parquet_name_the_domains(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    place = tmp_path / "text"
    place.mkdir()
    rows = {
        "body": [f"text {i}" for i in range(60)],
        "kind": [("code", "a/b")[i % 2] for i in range(60)],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), place / "all.parquet")
    config = DataConfig(source="folder", path=str(place), text_column="body")
    assert prepare(config).domains == ("all",)
    config.domain_column = "kind"
    assert prepare(config).domains == ("a/b", "code")
    config.domain_column = "sort"
    assert 'has no column "sort"; it has body, kind: name one by data.domain_column' in refused(
        config
    )
    (place / "all.parquet").write_bytes((place / "all.parquet").read_bytes()[:200])
    assert "broken Parquet" in refused(config)


def test_duplicates_are_kept_once_and_rather_for_validation(tmp_path: Path):
    (tmp_path / "x").mkdir()
    for split, texts in (("train", ["a", "b", "b", "v"]), ("valid", ["v", "w", "w"])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "x" / f"{split}.jsonl").write_text(lines)
    corpus = prepare(DataConfig(source="folder", path=str(tmp_path)))
    known = corpus.manifest["domains"]["x"]
    assert (known["train"]["documents"], known["valid"]["documents"]) == (2, 2)
    assert known["duplicates"] == 3


def test_overlap_is_the_share_of_passages_met_in_training(tmp_path: Path):
    draw = np.random.default_rng(0)
    fresh = ["".join(draw.choice(list("abcdefgh"), 4000)) for _ in range(40)]
    (tmp_path / "x").mkdir()
    train = [*fresh[:20], *(f"again {text}" for text in fresh[20:30])]
    for split, texts in (("train", train), ("valid", fresh[20:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "x" / f"{split}.jsonl").write_text(lines)
    corpus = prepare(DataConfig(source="folder", path=str(tmp_path)))
    assert abs(corpus.manifest["domains"]["x"]["overlap"] - 0.5) < 0.05


@pytest.mark.parametrize("text", ["x\0y", "\ufeffx"])
def test_nul_is_no_text(tmp_path: Path, text: str):
    (tmp_path / "x.txt").write_text(text * 9)
    message = refused(DataConfig(source="folder", path=str(tmp_path)))
    assert ("byte 1 is NUL" in message) == ("\0" in text)


def test_processes_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = DataConfig(source="folder", path=str(folder))
    corpora = []
    for number in (1, 3):
        monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / f"cache{number}"))
        corpora.append(prepare(config, processes=number))
    assert corpora[0].manifest["files"] == corpora[1].manifest["files"]


def test_it_goes_on_from_the_parts_that_are_there(
    config: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "PART_DOCUMENTS", 7)
    written: list[str] = []

    def stopping(path: Path):
        if len(written) == 9:
            raise KeyboardInterrupt
        written.append(path.name)
        return replacing(path)

    monkeypatch.setattr(shards, "replacing", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert len(list(cache.glob("*.partial/parts/*.npz"))) == 4
    monkeypatch.setattr(shards, "replacing", lambda p: (written.append(p.name), replacing(p))[1])
    before = len(written)
    resumed = prepare(config)
    assert not set(written[before:]) & {name for name in written[:8] if name.endswith(".npz")}
    monkeypatch.setenv("MOEBENCH_CACHE", f"{cache}2")
    assert prepare(config).manifest["files"] == resumed.manifest["files"]


def test_a_full_disk_leaves_the_old_cache_and_no_half(
    config: DataConfig, cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    old = prepare(config)

    def full(path: Path):
        raise OSError(28, "No space left on device", str(path))

    (folder / "beta" / "valid.jsonl").write_text('{"text": "new"}\n{"text": "newer"}\n')
    monkeypatch.setattr(shards, "replacing", full)
    assert "the cache cannot be written (No space left on device: " in refused(config)
    assert not list(cache.glob("*.partial"))
    old.check()


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_synthetic_text_has_the_likelihood_of_its_source(overlap: float):
    source = Synthetic(2, overlap, 0, train_bytes=60_000, valid_bytes=20_000)
    same, other = [], []
    for document in documents(source, "markov0"):
        nats = source.log_likelihood("markov0", bytes(document.text))
        assert nats.shape == (len(document.text) + 1,)
        same.append(nats.sum())
        other.append(source.log_likelihood("markov1", bytes(document.text)).sum())
    first, after = source.table("markov0")
    assert np.allclose([first.sum(), *after.sum(1)], 1)
    assert (sum(same) > 1.2 * sum(other)) if overlap == 0 else same == other
    with pytest.raises(DataError, match="is not text of domain"):
        source.log_likelihood("markov0", b"A" * 50)


def test_a_mixture_is_one_corpus(folder: Path):
    entries = f'data.sources=["synthetic num_domains=2","folder path={folder} domains=[alpha]"]'
    config = Composer().compose(["data=mixture", entries]).data
    assert config.sources[0] == "synthetic num_domains=2"
    alone = prepare(DataConfig(source="folder", path=str(folder), domains=["alpha"]))
    both = prepare(
        DataConfig(
            source="mixture",
            sources=[f"folder path={folder} domains=[alpha]", f"folder path={folder}"],
            domains=["alpha"],
        )
    )
    assert both.content_hash == alone.content_hash  # each text is kept once
    for entry, message in (
        ("mixture", "a mixture holds none"),
        ("folder", "data.path=null: data=folder needs a folder"),
        ("folder path=x homogeneity=0", "is not a key of a source"),
        ("folder pth=x", "no such key"),
    ):
        with pytest.raises(ConfigError, match=message):
            Composer().compose(["data=mixture", f'data.sources=["{entry}"]'])


def test_a_local_dataset_and_a_hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    lines = [json.dumps({"text": f"text {i}", "kind": "ab"[i % 2]}) + "\n" for i in range(60)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(lines))
    config = DataConfig(source="huggingface", name=str(tmp_path / "set"), streaming=True)
    assert prepare(config).domains == ("set",)
    config.domain_column = "kind"
    assert prepare(config).domains == ("a", "b")
    hub = DataConfig(source="huggingface", name="org/set")
    assert "data.revision=null: is not a commit" in refused(hub)
    hub.revision = "0" * 40
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "127.0.0.1 cannot be reached (Connection refused)" in refused(hub)


@pytest.fixture
def bpe(config: DataConfig) -> Corpus:
    config.tokenizer, config.vocab_size = "bpe", 300
    return prepare(config)


def test_bpe_holds_the_same_documents(bpe: Corpus, config: DataConfig):
    config.tokenizer = "bytes"
    plain = prepare(config)
    assert bpe.vocab_size == 300
    assert bpe.content_hash != plain.content_hash
    for domain in plain.domains:
        assert bpe.train(domain).dtype == np.uint16
        assert len(bpe.train(domain)) < len(plain.train(domain))
        for one, other in (
            (bpe.train(domain), plain.train(domain)),
            (bpe.valid(domain, "tune"), plain.valid(domain, "tune")),
        ):
            assert bpe.tokenizer.decode(one) == plain.tokenizer.decode(other)
            assert bpe.tokenizer.bytes_in(one) == plain.tokenizer.bytes_in(other)


def test_bytes_of_a_cut_character_are_counted():
    tokenizer = Subwords(train_bpe(["abc é漢😀" * 9], 262), "x")
    text = "é漢😀<|x|> a".encode()
    tokens = tokenizer.encode(text)
    assert [tokenizer.bytes_in(each) for each in tokens].count(1) > 1
    assert tokenizer.bytes_in(tokens) == len(text)
    with pytest.raises(DataError, match=r"data\.vocab_size=9000: the text has pairs for"):
        train_bpe(["abc"], 9000)


def test_a_tokenizer_that_changes_text_is_refused(config: DataConfig, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    config.tokenizer = str(path)
    assert "cannot be read (No such file or directory)" in refused(config)
    path.write_text("{}")
    assert "is no tokenizer" in refused(config)
    content = train_bpe(["Alpha beta gamma 0 1 2"], 270).decode()
    lowered = Backend.from_str(content)
    lowered.normalizer = normalizers.Replace("a", "A")  # type: ignore
    lowered.save(str(path))
    assert "changes text, here from 'alpha" in refused(config)
    words = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore
    words.decoder = decoders.WordPiece()  # type: ignore
    words.save(str(path))
    assert "is not byte-level" in refused(config)
    path.write_text(content)
    assert prepare(config).tokenizer.decode(prepare(config).train("alpha")[:40])


def test_held_out_domains_are_apart(config: DataConfig):
    everything = prepare(config)
    config.heldout = ["beta"]
    held = prepare(config)
    assert (held.domains, held.heldout) == (("alpha", "gamma"), ("beta",))
    assert held.content_hash == everything.content_hash


def peak_bytes(script: str, *arguments: str) -> int:
    """The peak memory of a Python process that runs a script."""
    script += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    command = [sys.executable, "-c", script, *arguments]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=500).stdout)


@pytest.mark.slow
def test_a_document_that_fills_the_memory_is_there_once(tmp_path: Path):
    size, piece = 300_000_000, b'a "long" w\xc3\xb6rd ' * 1000 + b"\n"
    (tmp_path / "text").mkdir()
    with (tmp_path / "text" / "big.txt").open("wb") as file:
        for _ in range(size // len(piece)):
            file.write(piece)
        for number in range(200):
            file.write(b"\n" + b"%d\n" % number * 200)
    peak = peak_bytes(
        "import sys; from moebench.config.schema import DataConfig;"
        "from moebench.data.corpus import prepare;"
        "prepare(DataConfig(source='folder', path=sys.argv[1]), processes=1)",
        str(tmp_path / "text"),
    )
    assert peak - size < 0.8 * size, "no second copy of it was made"


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_line_of_json_above_the_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    lines = [f'{{"text": "{letter * ((1 << 20) - 13)}"}}\n' for letter in "abcd"]
    path = tmp_path / "text" / name
    path.parent.mkdir()
    config = DataConfig(source="folder", path=str(path.parent))
    write = gzip.open if name.endswith(".gz") else open
    with write(path, "wt") as file:
        file.writelines(lines)
    assert prepare(config).domains == ("x",)
    with write(path, "at") as file:
        file.write(f'{{"text": "{"e" * (1 << 20)}"}}\n')
    assert refused(config) == (
        f"{path}:5: is longer than 1 MiB; split the document into several, or put its text into a "
        ".txt file"
    )


def test_a_line_without_end_takes_no_more_memory_than_the_bound(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "')
    os.truncate(path, 1 << 33)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is longer than"):
            next(files.rows(path, files.Columns()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * files.MAX_LINE_BYTES


@pytest.mark.slow
def test_a_million_documents_of_one_byte(tmp_path: Path):
    letters = "abcdefgh"
    (tmp_path / "x.jsonl").write_text(
        "".join(f'{{"text": "{each}"}}\n' for each in letters) * (1_000_000 // len(letters))
    )
    known = prepare(DataConfig(source="folder", path=str(tmp_path))).manifest["domains"]["x"]
    assert known["duplicates"] == 1_000_000 - len(letters)
    assert known["train"]["documents"] + known["valid"]["documents"] == len(letters)


def test_text_of_two_encodings_says_where_the_second_begins(tmp_path: Path):
    first = "Grüße\n".encode()
    for second, wrong in (
        ("Grüße\n".encode("latin-1"), "byte 10 (0xfc) is not UTF-8"),
        ("Ciao\n".encode("utf-16-le"), "byte 9 is NUL"),
    ):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / "x.txt").write_bytes(first + second)
        with pytest.raises(DataError) as caught:
            prepare(DataConfig(source="folder", path=str(tmp_path / "text")))
        assert f"x.txt: {wrong}" in str(caught.value)
