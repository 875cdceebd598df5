"""Sweeps in Hydra's grammar: the runs that they come to, and what each error says."""

import re

import pytest

from moebench.config.compose import Composer
from moebench.errors import ConfigError

COMPOSER = Composer()


@pytest.mark.parametrize(
    ("overrides", "jobs"),
    [
        ([], [()]),
        (["seed=3"], [("seed=3",)]),
        (["scope=micro,global"], [("scope=micro",), ("scope=global",)]),
        (["seed=range(0,3)"], [("seed=0",), ("seed=1",), ("seed=2",)]),
        (["scope=choice(micro,none)"], [("scope=micro",), ("scope=none",)]),
        (["scope=glob(s*)"], [("scope=sequence",), ("scope=shuffled",)]),
        (["scope=glob(*,exclude=[d*,n*,s*])"], [("scope=global",), ("scope=micro",)]),
        (["seed=sort(3,1,2)"], [("seed=1",), ("seed=2",), ("seed=3",)]),
        (
            ["scope=micro,global", "seed=0,1", "model=smoke"],
            [(f"scope={a}", f"seed={b}", "model=smoke") for a in ("micro", "global") for b in "01"],
        ),
        (["data.path='a, b','c d'"], [("data.path='a, b'",), ("data.path='c d'",)]),
        (["data.domains=[a,b],[c]"], [("data.domains=[a,b]",), ("data.domains=[c]",)]),
    ],
)  # fmt: skip
def test_sweeps_are_written_as_in_hydra(overrides: list[str], jobs: list[tuple[str, ...]]) -> None:
    assert COMPOSER.expand(overrides) == jobs


def test_a_shuffled_sweep_has_each_value_once() -> None:
    jobs = COMPOSER.expand(["seed=shuffle(range(0,20))"])
    assert sorted(jobs) == sorted((f"seed={n}",) for n in range(20))


def test_a_sweep_is_known_by_how_it_is_written() -> None:
    assert [COMPOSER.is_sweep(word) for word in ("seed=0,1", "seed=choice(1)", "seed=1")] == [
        *(True, True),
        False,
    ]


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("seed=range(0)", "seed=range(0): the sweep is empty; give at least one value"),
        ("scope=glob(x*)", "scope=glob(x*): the sweep is empty; give at least one value"),
        ("seed=range(0,10,0)", "seed=range(0,10,0): is not a sweep that can run (range() arg 3 "),
        (
            "seed=range(3),7",
            "seed=range(3),7: is not a sweep that can run (a range stands alone); l",
        ),
        ("optim.lr=interval(0,1)", "optim.lr=interval(0,1): is not a sweep that can run ("),
        ("seed=range(0,1000000000)", "seed=range(0,1000000000): is more than 10000 runs; "),
        ("scope=micro,macro", "scope=macro: no such scope; did you mean micro?"),
        ("sede=0,1", "sede=0,1: no such key; did you mean seed?"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_named(override: str, error: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(error)}"):
        COMPOSER.expand([override])
