"""Bytes go in and come out, the end mark is no byte of any text, and failures are one line."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.data.tokenizer import END, ByteTokenizer, Subwords, train_bpe
from moebench.errors import DataError

TEXT = st.text(st.characters(codec="utf-8"))


@settings(deadline=None)
@given(TEXT)
def test_round_trip(text: str):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text.encode())
    assert tokens.dtype == np.uint8
    assert tokens.flags.writeable
    assert tokenizer.decode(tokens) == text
    assert END not in tokens
    assert tokenizer.bytes_in(tokens) == len(text.encode())


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1))
def test_end_marks_stand_for_no_text(texts: list[str]):
    tokenizer = ByteTokenizer()
    tokens = np.concatenate(
        [np.append(tokenizer.encode(text.encode()), np.uint8(END)) for text in texts]
    )
    assert tokenizer.decode(tokens) == "".join(texts)
    assert tokenizer.bytes_in(tokens.astype(np.int64)) == len("".join(texts).encode())


def test_a_cut_character_is_shown_as_such():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("aé".encode())[:2]) == "a\ufffd"
    assert tokenizer.decode([]) == ""


def test_identity():
    tokenizer = ByteTokenizer()
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.end) == ("bytes", 256, 255)
    assert tokenizer.hash == ByteTokenizer().hash
    assert len(tokenizer.hash) == 64


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}},
        {"pre_tokenizer": SPLIT},  # a regular expression of too many steps: its code panics
    ],
)
def test_a_tokenizer_that_fails_on_a_text_is_an_error_of_one_line(change: dict[str, Any]) -> None:
    content = json.loads(train_bpe(["some words and other words"] * 9, 260))
    tokenizer = Subwords(json.dumps(content | change).encode(), "data.tokenizer=x")
    with pytest.raises(DataError, match=r"^data\.tokenizer=x: cannot encode the text \(.+\); give"):
        tokenizer.encode(b"a" * 40 + b"!")
