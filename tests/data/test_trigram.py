"""The byte trigram against the formula spelled out, its bounds, and where its value is kept."""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from moebench.config.schema import DataConfig
from moebench.data.corpus import Corpus, prepare
from moebench.data.making import trigram
from moebench.data.making.trigram import trigram_bits
from moebench.data.tokenizer import END

END_BYTE = bytes([END])


def written(folder: Path, name: str, *texts: bytes) -> Path:
    path = folder / f"{name}.bin"
    path.write_bytes(b"".join(text + END_BYTE for text in texts))
    return path


def literal(train: list[bytes], valid: bytes) -> float:
    """Bits a byte of one domain's validation, with Witten and Bell's formula as a recursion."""
    mean = sum(map(len, train)) / len(train)
    counts: list[defaultdict[bytes, float]] = [defaultdict(float) for _ in range(4)]
    for text in train:
        padded = 2 * END_BYTE + text
        for i in range(2, len(padded)):
            for order in (1, 2, 3):
                counts[order][padded[i + 1 - order : i + 1]] += mean / len(text)

    def probability(context: bytes, byte: bytes) -> float:
        order = len(context) + 1
        shorter = probability(context[1:], byte) if context else 1 / 256
        after = [key for key in counts[order] if key[:-1] == context]
        total = sum(counts[order][key] for key in after)
        if not after:
            return shorter
        seen = counts[order].get(context + byte, 0)
        return (seen + len(after) * shorter) / (total + len(after))

    padded = 2 * END_BYTE + valid
    bits = -sum(
        math.log2(probability(padded[i - 2 : i], padded[i : i + 1])) for i in range(2, len(padded))
    )
    return bits / sum(byte != END for byte in valid)


@pytest.mark.parametrize("block", [1 << 20, 5])
def test_it_is_witten_and_bells_over_equal_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(trigram, "BLOCK", block)
    train = [written(tmp_path, "a", b"abracadabra", b"abba"), written(tmp_path, "b", b"a cab " * 9)]
    valid = [written(tmp_path, "va", b"tuned", b"cab"), written(tmp_path, "vb", b"bad", b"", b"\n")]
    texts = [path.read_bytes() for path in train]
    expected = [literal(texts, valid[0].read_bytes()[6:]), literal(texts, valid[1].read_bytes())]
    assert trigram_bits(train, valid, [6, 0]) == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_order_of_the_text_is_what_it_knows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(65, 69, 30_000, np.uint8).tobytes() for _ in range(2)]  # 2 bits a byte
    cycle = [b"abcd" * 5000] * 2
    for name, (train, valid), low, high in (
        ("noise", noise, 1.99, 2.02),
        ("cycle", cycle, 0, 0.01),
    ):
        paths = [written(tmp_path, f"{name}{i}", text) for i, text in enumerate((train, valid))]
        assert low < trigram_bits(paths[:1], paths[1:], [0]) < high


def test_it_is_made_once_kept_in_the_manifest_and_no_part_of_the_hash(
    corpus: Corpus, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus.directory / "manifest.json"
    manifest = json.loads(path.read_bytes())
    assert list(manifest.pop("derived").values()) == [corpus.trigram_bits]
    path.write_text(json.dumps(manifest))  # as a cache of an earlier version is
    again = prepare(config)
    assert (again.content_hash, again.trigram_bits) == (corpus.content_hash, corpus.trigram_bits)
    monkeypatch.setattr("moebench.data.corpus.trigram_bits", None)  # is not computed again
    assert prepare(config).trigram_bits == corpus.trigram_bits


def test_it_belongs_to_the_domains_trained_on_whatever_the_tokenizer(
    corpus: Corpus, folder: Path
) -> None:
    def of(**keys: object) -> float:
        return prepare(DataConfig(source="folder", path=str(folder), **keys)).trigram_bits  # pyright: ignore[reportArgumentType]

    assert of(heldout=["beta"]) == of(domains=["gamma", "alpha"]) != corpus.trigram_bits
    assert of(tokenizer="bpe", vocab_size=300) == corpus.trigram_bits


def test_a_cache_that_cannot_be_written_is_read_all_the_same(
    corpus: Corpus, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus.directory / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["derived"]
    path.write_text(json.dumps(manifest))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(corpus.directory))

    monkeypatch.setattr("moebench.data.making.cache.hold", refuse)
    assert prepare(config).trigram_bits == corpus.trigram_bits
    assert "derived" not in json.loads(path.read_bytes())
