"""The choice of a size by headroom, from fake records on tuning seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.headroom_size import (
    by_steps,
    commands,
    cost_of,
    score,
    sizes_of,
    steps_table,
    table,
    why_not,
)
from benchmarks.tuning_runs import with_metrics
from moebench.config.compose import Composer
from moebench.errors import RecordError
from moebench.records import Record
from moebench.report.read.frame import load

Make = Callable[..., Record]
ARMS: dict[str, dict[str, Any]] = {
    "T": {"router.map": "hash", "scope": "none"},
    "TD": {"router.map": "domain_token", "scope": "none"},
    "micro": {"balance_bsz": 4},
    "shuffled": {"balance_bsz": 128, "scope": "shuffled"},
    "global": {"balance_bsz": 128},
    "micro A/A": {"balance_bsz": 4, "router.perturb": 1e-6},
    "global A/A": {"balance_bsz": 128, "router.perturb": 1e-6},
}


@pytest.fixture
def made(runs: Path, run: Make) -> Callable[..., Path]:
    """Records of a size: H at all and at half of its steps, and the distance of learned arms."""

    def size(
        h: float, half: float, behind: float = -0.01, seeds: int = 3, first: int = 1000, **keys: Any
    ) -> Path:
        rng = np.random.default_rng(3)
        for seed in range(first, first + seeds):
            block = 1.6 + 0.1 * rng.normal()
            for arm, science in ARMS.items():
                steps = (400, 200) if arm in ("T", "TD") else (400,)
                for number in steps:
                    gap = {"T": 0.0, "TD": -(h if number == 400 else half)}.get(arm, behind)
                    noise = 0.002 * rng.normal()
                    science_of = science | {"train.steps": number} | keys
                    run(runs, arm, seed, block + gap + noise, science=science_of, rows=[])
        return runs

    return size


def sizes(runs: Path) -> Any:
    return sizes_of(with_metrics(load([runs])))


def test_an_eligible_size_has_its_bounds_and_score(made: Callable[..., Path]) -> None:
    [size] = sizes(made(0.05, 0.06))
    assert why_not(size) == []
    h, low, seeds = size.headroom(400)
    each = [size.nats("T", 400)[s] - size.nats("TD", 400)[s] for s in (1000, 1001, 1002)]
    assert (h, seeds) == (pytest.approx(np.mean(each)), 3)
    # the one-sided 80 % quantile of Student's t with 2 degrees of freedom is 1.0607
    assert low == pytest.approx(h - 1.0607 * np.std(each, ddof=1) / 3**0.5, rel=1e-4)
    noise = size.noise()
    assert noise.pairs == 6
    assert noise.upper > noise.sd
    assert cost_of(size) == pytest.approx(6 * 1.0)
    assert score(size) == pytest.approx(low**2 / noise.upper**2 / 6)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"h": 0.05, "half": 0.06, "seeds": 2}, "2 seeds, 2 at half, 4 A/A pairs: too few"),
        ({"h": -0.01, "half": 0.06}, "H is not above 0 at all and at half of the steps"),
        ({"h": 0.05, "half": -0.01}, "H is not above 0 at all and at half of the steps"),
        ({"h": 0.03, "half": 0.06}, "H falls by more than a third"),
        ({"h": 0.05, "half": 0.06, "behind": 0.02}, "learned routers are behind the hash"),
    ],
)
def test_what_makes_a_size_ineligible(
    made: Callable[..., Path], numbers: dict[str, Any], why: str
) -> None:
    [size] = sizes(made(**numbers))
    assert why in why_not(size)


def test_sizes_are_ranked_and_tried_weights_are_no_part_of_them(
    made: Callable[..., Path], run: Make
) -> None:
    made(0.03, 0.03, **{"model.d_model": 32})
    runs = made(0.06, 0.06, **{"model.d_model": 64})
    odd = ARMS["global"] | {"loss.balance": 0.5, "model.d_model": 64}
    run(runs, "global", 1000, 9.0, science=odd, rows=[])
    text = table(sizes(runs))
    first, second = text.splitlines()[2:]
    assert first.startswith("| model.d_model=64 | 400 | 0.1 | 0.06")
    assert second.startswith("| model.d_model=32 | 400 | 0.1 | 0.0")
    assert first.endswith("| yes |")
    for arm in ("micro", "global", "shuffled"):
        assert arm not in text, "the difference of scopes is never shown"


def test_headroom_by_steps_has_sizes_that_are_not_whole(
    made: Callable[..., Path], run: Make
) -> None:
    runs = made(0.05, 0.06)
    for seed in (1000, 1001):
        for steps, gap in ((400, 0.08), (800, 0.04)):
            for arm, nats in {"T": 1.6, "TD": 1.6 - gap, "global": 1.61}.items():
                keys = {"train.steps": steps, "optim.router_lr": 3.0}
                if arm != "global" or steps == 400:
                    run(runs, arm, seed, nats, science=ARMS[arm] | keys, rows=[])
    header, _, *lines = steps_table(by_steps(with_metrics(load([runs])))).splitlines()
    assert header.startswith("| size | steps | seeds | H | H_L | learned less T | of | weight |")
    starts = [line.split(" | ")[:3] for line in lines]
    assert starts == [
        ["| optim.router_lr=1", "200", "3"],
        ["| optim.router_lr=1", "400", "3"],
        ["| optim.router_lr=3", "400", "2"],
        ["| optim.router_lr=3", "800", "2"],
    ]
    assert lines[0].endswith(" |  |  |  |"), "there are no learned arms"
    assert lines[1].endswith(" | 3 arms, 3 seeds | 0.1 |")
    assert lines[2].endswith(" | 0.0800 | 0.0800 | 0.0100 | global, 2 seeds | 0.1 |")
    assert lines[3].endswith(" | 0.0400 | 0.0400 |  |  |  |")


def test_a_stacked_run_costs_its_share(runs: Path, run: Make) -> None:
    for arm in ("micro", "shuffled", "global"):
        run(runs, arm, 1000, science=ARMS[arm], rows=[], stacked=6)
    [size] = sizes(runs)
    assert cost_of(size) == pytest.approx(1.0), "60 s are those of six runs"


def test_a_reported_seed_chooses_nothing(made: Callable[..., Path]) -> None:
    with pytest.raises(RecordError, match="seed 0 is one that is reported"):
        sizes(made(0.05, 0.06, first=0))


def test_the_printed_commands_make_the_runs_of_a_size() -> None:
    study = Composer().study("headroom_size")
    lines = commands(["data=synthetic"], study)
    assert len(lines) == 5 * len(study.sizes)
    weights, _, whole, half = (line.split() for line in lines[1:5])
    assert {*study.overrides} - {*weights} == {"seed=range(1000,1003)"}, "so one run is shared"
    assert "study.size=base" in whole
    assert "train.steps=300" in half
    assert half.count("--exclude") == 3
    [half] = [line for line in lines if "study.size=long" in line and "--exclude" in line]
    assert "train.steps=900" in half
