"""The cache: its content, when it is made again, and how processes share it."""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus, prepare
from moebench.data.sources.folder import Folder
from moebench.data.tokenizer import END
from moebench.errors import DataError
from tests.data.reading import documents


def split_documents(tokens: np.ndarray) -> list[bytes]:
    data = tokens.tobytes()
    assert data.endswith(bytes([END]))
    return data[:-1].split(bytes([END]))


def rank(text: bytes) -> str:
    return hashlib.sha256(text + bytes([END])).hexdigest()


def made(config: DataConfig) -> bool:
    """Whether preparing had to make something."""
    messages: list[str] = []
    prepare(config, progress=messages.append)
    return bool(messages)


def test_it_holds_the_documents_in_the_order_of_their_content(corpus: Corpus, folder: Path):
    assert corpus.domains == ("alpha", "beta", "gamma")
    assert corpus.vocab_size == 256
    for domain in corpus.domains:
        written: dict[str, list[bytes]] = {"train": [], "valid": []}
        for document in documents(Folder(str(folder)), domain):
            written[document.split or "train"].append(bytes(document.text))
        known = corpus.manifest["domains"][domain]
        assert split_documents(corpus.train(domain)) == sorted(written["train"], key=rank)
        halves = [split_documents(corpus.valid(domain, half)) for half in ("tune", "test")]
        assert sorted(halves[0] + halves[1]) == sorted(written["valid"])
        for split in ("train", "valid"):
            size = sum(map(len, written[split]))
            assert known[split]["documents"] == len(written[split])
            assert known[split]["bytes"] == size
            assert known[split]["tokens"] == size + len(written[split])


def test_halves_share_no_document_and_are_near_equal(corpus: Corpus):
    for domain in corpus.domains:
        tune, test = (split_documents(corpus.valid(domain, half)) for half in ("tune", "test"))
        assert tune == sorted(tune, key=rank)
        assert test == sorted(test, key=rank)
        assert not set(tune) & set(test)
        longest = max(map(len, tune + test)) + 1
        assert abs(len(corpus.valid(domain, "tune")) - len(corpus.valid(domain, "test"))) <= longest


@pytest.mark.parametrize("number", [3, 10, 100, 1000])
def test_a_missing_valid_split_is_made_by_document(tmp_path: Path, number: int):
    split = []
    for place, order in (("one", 1), ("other", -1)):
        lines = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(number)][::order]
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.jsonl").write_text("".join(lines))
        corpus = prepare(DataConfig(source="folder", path=str(tmp_path / place)))
        halves = [split_documents(corpus.valid("x", half)) for half in ("tune", "test")]
        assert all(halves)
        split.append((split_documents(corpus.train("x")), halves[0] + halves[1]))
    train, valid = split[0]
    assert sorted(train + valid) == sorted(f"document {i}".encode() for i in range(number))
    assert 2 <= len(valid) <= max(2, number // 10)
    assert split[1] == split[0]  # content decides, not the order in which it comes


def test_offsets_say_where_documents_begin(corpus: Corpus):
    for domain in corpus.domains:
        offsets = np.load(corpus.directory / f"{domain}.train.idx.npy")
        tokens = corpus.train(domain)
        assert offsets.dtype == np.int64
        assert offsets[0] == 0
        assert (offsets[1:] == np.flatnonzero(tokens == END) + 1).all()


def test_tokens_are_mapped_and_cannot_be_written(corpus: Corpus):
    tokens = corpus.train("alpha")
    assert tokens.dtype == np.uint8
    assert not tokens.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 0


def test_describe(corpus: Corpus):
    rows = corpus.describe()
    assert [row["domain"] for row in rows] == ["alpha", "beta", "gamma"]
    assert rows[0]["train_documents"] == 40
    assert rows[0]["valid_documents"] == 12
    assert str(rows[0]["sample"]).startswith("alpha train ")
    assert len(str(rows[0]["sample"])) <= 60


def test_the_second_time_it_is_there(config: DataConfig, folder: Path):
    messages: list[str] = []
    corpus = prepare(config, progress=messages.append)
    assert messages[0] == (
        f"data.path={folder}: preparing alpha, beta, gamma in {corpus.directory}"
    )
    assert [message.split(":")[0] for message in messages[1:]] == ["alpha", "beta", "gamma"]
    assert not made(config)
    corpus.check()


def test_a_changed_file_is_read_again(config: DataConfig, folder: Path):
    before = prepare(config).content_hash
    with (folder / "beta" / "train.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert made(config)
    assert prepare(config).content_hash != before


def test_content_hash_is_of_content_only(config: DataConfig, folder: Path, tmp_path: Path):
    corpus = prepare(config)
    shutil.copytree(folder, tmp_path / "moved", copy_function=shutil.copyfile)
    moved = prepare(DataConfig(source="folder", path=str(tmp_path / "moved")))
    assert moved.directory != corpus.directory
    assert moved.content_hash == corpus.content_hash
    (tmp_path / "moved" / "alpha").rename(tmp_path / "moved" / "delta")
    renamed = prepare(DataConfig(source="folder", path=str(tmp_path / "moved")))
    assert renamed.content_hash != corpus.content_hash


def test_some_domains_are_taken_from_the_cache_of_all(folder: Path, cache: Path):
    picked = DataConfig(source="folder", path=str(folder), domains=["gamma", "alpha"])
    alone = prepare(picked)
    everything = prepare(DataConfig(source="folder", path=str(folder)))
    shared = prepare(picked)
    assert alone.directory != everything.directory == shared.directory
    assert alone.domains == shared.domains == ("alpha", "gamma")
    assert alone.content_hash == shared.content_hash != everything.content_hash
    assert set(shared.manifest["domains"]) == {"alpha", "gamma"}
    assert shared.manifest["content_hash"] == shared.content_hash
    assert (alone.train("alpha") == everything.train("alpha")).all()


def test_a_broken_domain_can_be_left_out(folder: Path):
    (folder / "beta" / "train.jsonl").write_text("broken")
    with pytest.raises(DataError, match=r"train\.jsonl:1: is not JSON"):
        prepare(DataConfig(source="folder", path=str(folder)))
    prepare(DataConfig(source="folder", path=str(folder), domains=["alpha", "gamma"]))


@pytest.mark.parametrize(
    "damage", ["no manifest", "half a manifest", "manifest of another version", "cut", "gone"]
)
def test_a_half_cache_is_made_again(config: DataConfig, damage: str):
    corpus = prepare(config)
    content = {path.name: path.read_bytes() for path in corpus.directory.iterdir()}
    target = corpus.directory / ("manifest.json" if "manifest" in damage else "alpha.valid.idx.npy")
    if damage in ("no manifest", "gone"):
        target.unlink()
    elif "version" in damage:
        manifest = json.loads(target.read_bytes())
        target.write_text(json.dumps(manifest | {"format": manifest["format"] - 1}))
    else:
        target.write_bytes(target.read_bytes()[:-10])
    assert made(config)
    assert {path.name: path.read_bytes() for path in corpus.directory.iterdir()} == content


@pytest.mark.parametrize("name", ["alpha.train.bin", "gamma.valid.idx.npy"])
def test_check_finds_a_flipped_byte(config: DataConfig, name: str):
    corpus = prepare(config)
    path = corpus.directory / name
    changed(path, like=corpus.directory / "manifest.json")
    assert not made(config)  # of the right size and age: found by hashing only
    with pytest.raises(DataError) as caught:
        corpus.check()
    assert str(caught.value) == (
        f"{path}: does not match its checksum; the cache is discarded, make it again with "
        "`moebench data prepare`"
    )
    assert made(config)
    prepare(config).check()


def test_a_file_that_was_written_to_is_hashed_before_it_is_used(config: DataConfig):
    corpus = prepare(config)
    path, manifest = corpus.directory / "alpha.train.bin", corpus.directory / "manifest.json"
    later = manifest.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert not made(config)
    assert manifest.stat().st_mtime_ns > later - 10**9
    changed(path)
    with pytest.raises(DataError, match=r"alpha\.train\.bin: does not match its checksum"):
        prepare(config)
    assert made(config)
    prepare(config).check()


def changed(path: Path, like: Path | None = None) -> None:
    """Flip a bit; the file looks as old as another, or a second younger than any."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    when = like.stat().st_mtime_ns if like else time.time_ns() + 10**9
    os.utime(path, ns=(when, when))


def test_a_preparation_that_fails_or_was_killed_leaves_nothing(folder: Path, cache: Path):
    config = DataConfig(source="folder", path=str(folder))
    broken = folder / "gamma" / "valid.jsonl"
    good = broken.read_text()
    broken.write_text("broken")
    with pytest.raises(DataError, match="is not JSON"):
        prepare(config)
    assert not list(cache.iterdir())
    broken.write_text(good)
    directory = prepare(config).directory
    shutil.move(directory, f"{directory}.partial")  # as a killed process leaves it
    (Path(f"{directory}.partial") / "manifest.json").unlink()
    assert made(config)
    assert not Path(f"{directory}.partial").exists()
    prepare(config).check()


def prepare_at_once(folder: str, barrier, results) -> None:
    messages: list[str] = []
    barrier.wait()
    corpus = prepare(DataConfig(source="folder", path=folder), progress=messages.append)
    results.put((corpus.content_hash, [m for m in messages if "preparing" in m], messages))


def test_two_processes_share_one_preparation(folder: Path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=prepare_at_once, args=(str(folder), barrier, results))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({content for content, _, _ in answers}) == 1
    assert sum(any(": preparing" in m for m in messages) for _, _, messages in answers) == 1


def test_too_little_text(tmp_path: Path):
    config = DataConfig(source="folder", path=str(tmp_path / "text"))
    domain = tmp_path / "text" / "x"
    domain.mkdir(parents=True)

    def write(split: str, *texts: str) -> None:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (domain / f"{split}.jsonl").write_text(content)

    where = f"data.path={tmp_path / 'text'}: domain 'x' has too little text"
    write("train", "one", "two")
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert str(caught.value) == (
        f"{where} to train on: all its documents (2) went to validation; add text to it"
    )
    write("valid", "three")
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert str(caught.value) == (
        f"{where} for validation: the halves tune and test need a document each, and it has 1; "
        "add some"
    )
    write("valid", "three", "four")
    prepare(config)


def test_a_cache_that_cannot_be_written(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MOEBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert str(caught.value) == (
        f"{tmp_path / 'file'}: the cache cannot be written (File exists); set MOEBENCH_CACHE to a "
        "folder that can be"
    )


def test_where_the_cache_lies(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MOEBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(config).directory.parent == tmp_path / "xdg" / "moebench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare(config).directory.parent == tmp_path / "home" / ".cache" / "moebench"
