"""Tasks on checkpoints, compared with a scorer that loops over texts and tokens."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.errors import DataError
from moebench.evaluate import (
    BATCH_TOKENS,
    Settings,
    _batches,
    open_checkpoint,
    run_tasks,
)
from moebench.experiment import run_experiment
from moebench.metrics.tasks import cloze, read_blimp
from moebench.records import Record

PAIRS = [
    ("The cats sleep.", "The cats sleeps.", "agree_1", "agreement"),
    ("A dog barks at the old gate.", "A dog bark at the old gate.", "agree_2", "agreement"),
    ("Who left?", "Left who then did?", "wh_1", "questions"),
]


def silent(_what, items, _total):
    return items


@pytest.fixture(scope="module")
def blimp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blimp")
    lines = [
        json.dumps(
            dict(
                zip(("sentence_good", "sentence_bad", "UID", "linguistics_term"), pair, strict=True)
            )
        )
        for pair in PAIRS
    ]
    (folder / "agree.jsonl").write_text("\n".join(lines[:2]) + "\n")
    (folder / "wh.jsonl.gz").write_bytes(gzip.compress(lines[2].encode()))
    return folder


def make_run(folder: Path, text_folder: Path, *more: str) -> Record:
    words = [
        *("model=smoke", "train.steps=2", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "run.threads=1"),
    ]
    config = Composer().compose([*words, *more])
    return run_experiment(config, prepare(config.data), folder)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Record:
    return make_run(tmp_path_factory.mktemp("runs"), text_folder)


def test_scores_equal_those_of_a_loop_over_texts_and_tokens(record: Record, blimp: Path) -> None:
    checkpoint = open_checkpoint(record)
    results = run_tasks(checkpoint, ["blimp"], Settings(blimp), silent)["blimp"]

    def score(sentence: str) -> float:
        tokens = [255, *sentence.encode()]
        total = 0.0
        for end in range(1, len(tokens)):
            with torch.no_grad():
                logits = checkpoint.model(torch.tensor([tokens[:end]]))[0][0, -1]
            total += float(logits.double().log_softmax(-1)[tokens[end]])
        return total

    texts = [sentence for good, bad, *_ in PAIRS for sentence in (good, bad)]
    by_hand = [score(text) for text in texts]
    encoded = [np.array([255, *text.encode()]) for text in texts]
    batched = checkpoint.log_likelihood(encoded, [1] * len(texts), silent, "")
    assert batched == pytest.approx(by_hand, rel=1e-5)
    right = [one > other for one, other in zip(by_hand[::2], by_hand[1::2], strict=True)]
    assert results["all"]["accuracy"] == pytest.approx(sum(right) / 3)
    assert results["phenomenon"]["agreement"]["accuracy"] == sum(right[:2]) / 2
    assert results["phenomenon"]["agreement"]["n"] == 2
    assert set(results["paradigm"]) == {"agree_1", "agree_2", "wh_1"}


def test_batches_hold_every_text_once_and_no_more_tokens_than_allowed() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(1, 3000, 200)]
    batches = list(_batches(lengths))
    assert sorted(at for batch in batches for at in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[at] for at in batch) <= BATCH_TOKENS


def test_cloze_equals_a_loop_over_candidates_and_tokens(tmp_path: Path, text_folder: Path) -> None:
    """With BPE, candidates have equally many tokens, but not equally many bytes."""
    record = make_run(tmp_path, text_folder, "data.tokenizer=bpe", "data.vocab_size=300")
    checkpoint = open_checkpoint(record)
    found = run_tasks(checkpoint, ["cloze"], Settings(questions=5), silent)["cloze"]
    corpus = checkpoint.corpus
    questions = cloze(
        [(name, corpus.valid(name, "test")) for name in corpus.domains],
        end=corpus.tokenizer.end,
        questions=5,
        context=24,
        length=8,
    )
    right: dict[str, list[float]] = {}
    sizes = set()
    for each in questions:
        scores = []
        for candidate in each.candidates:
            tokens = [*each.context, *candidate]
            with torch.no_grad():
                logits = checkpoint.model(torch.tensor([tokens]))[0][0].double().log_softmax(-1)
            total = sum(float(logits[at - 1, tokens[at]]) for at in range(24, 32))
            size = len(corpus.tokenizer.decode(candidate).encode())
            sizes.add(size)
            scores.append(total / size)
        right.setdefault(each.domain, []).append(float(scores[0] == max(scores)))
    assert len(sizes) > 1
    assert set(right) == {"digits", "letters", "shapes"}
    for domain, each in right.items():
        assert found["domain"][domain]["n"] == len(each)
        assert found["domain"][domain]["accuracy"] == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "is not a pair of BLiMP"),
        ('{"UID": 1}', "is not a pair of BLiMP"),
        ("", "hold no pairs"),
    ],
)
def test_invalid_pairs_are_errors(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(DataError, match="holds no"):
        read_blimp(tmp_path)
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=wanted):
        read_blimp(tmp_path)
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"x.jsonl"):
        read_blimp(tmp_path)
