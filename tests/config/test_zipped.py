"""Zipped axes: keys that are swept together."""

import pytest

from moebench.config.compose import Composer
from moebench.config.zipped import keys_of, rows_of
from moebench.errors import ConfigError


def test_a_zip_sets_its_keys_together() -> None:
    words = ["model.num_experts:model.top_k=8:1,16:2", "seed=0,1"]
    assert Composer().expand(words) == [
        ("model.num_experts=8", "model.top_k=1", "seed=0"),
        ("model.num_experts=8", "model.top_k=1", "seed=1"),
        ("model.num_experts=16", "model.top_k=2", "seed=0"),
        ("model.num_experts=16", "model.top_k=2", "seed=1"),
    ]
    assert Composer().is_sweep("seed:optim.lr=0:1")


def test_a_colon_or_comma_within_a_value_separates_nothing() -> None:
    word = "scope:balance.terms=micro:[{stop:0.5},{scope:global,start:0.5}],global:[]"
    assert rows_of(word) == [
        ("scope=micro", "balance.terms=[{stop:0.5},{scope:global,start:0.5}]"),
        ("scope=global", "balance.terms=[]"),
    ]
    assert rows_of("""data.path:seed='a:b,\\'c':0""") == [("data.path='a:b,\\'c'", "seed=0")]
    assert keys_of("data.path=a:b") == ("data.path",)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["seed:optim.lr=0:1,2"], "zips 2 keys, but 2 is 1 value; write as many values as keys"),
        (["seed:optim.lr=0:1:2"], "zips 2 keys, but 0:1:2 is 3 values"),
        (["seed:optim.lr="], "zips 2 keys, but an empty text is 1 value"),
        (["seed:=0:1"], "zips 2 keys, but 0:1 is 2 values"),
        (["seed:optim.lr=0:range(1,3)"], "optim.lr=range(1,3) is a sweep within a zip"),
        (["seed:optim.weight_dekay=0:1"], "no such key; did you mean optim.weight_decay?"),
        (["model:seed=tinny:1"], "model=tinny: no such model; did you mean tiny?"),
        (["seed:optim.lr=0:1", "optim.lr=2"], "optim.lr: is set twice (optim.lr=2 and optim.lr=1)"),
    ],
)
def test_what_cannot_be_zipped_is_one_line(words: list[str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Composer().expand(words)
    assert error in str(caught.value)
    assert len(caught.value.lines) == 1


def test_one_run_takes_no_zip() -> None:
    with pytest.raises(ConfigError, match="is a sweep, where one value is needed; set each key"):
        Composer().compose(["seed:optim.lr=0:1"])
