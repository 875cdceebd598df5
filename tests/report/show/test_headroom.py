"""Headroom: H and S - D against values by hand, in words that the seeds allow, and as a plot."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moebench.records import Record
from moebench.report import make_report
from moebench.report.draw import headroom as plots
from moebench.report.infer.headroom import headroom, role_of
from moebench.report.infer.statistics import mean_interval
from moebench.report.show.answers import answers

Make = Callable[..., Record]
NONE = {"scope": "none", "data.domain_token": True}
ARMS: dict[str, tuple[dict[str, Any], float]] = {
    "hash": (NONE | {"router.map": "hash"}, 0.0),
    "domain_token": (NONE | {"router.map": "domain_token"}, -0.05),
    "sequence_hash": (NONE | {"router.map": "sequence_hash"}, 0.10),
    "domain": (NONE | {"router.map": "domain"}, 0.06),
    "none random": (NONE | {"router.random": True}, 0.12),
    "dense": (NONE | {"model.moe": False}, 0.15),
    "micro": ({"data.domain_token": True}, 0.03),
    "global": ({"data.domain_token": True, "balance_bsz": 128}, -0.08),
}


def made(
    runs: Path, run: Make, seeds: int, shift: dict[str, float] | None = None, **more: Any
) -> dict[str, list[float]]:
    """Runs of these arms -> the nats a byte of each seed."""
    rng, found = np.random.default_rng(0), {}
    own = {name: more.pop(name) for name in [*more] if name in ARMS}
    for seed in range(seeds):
        block = 1.6 + 0.02 * rng.normal()
        for name, (science, effect) in ARMS.items():
            nats = block + (shift or {}).get(name, effect) + 0.002 * rng.normal()
            run(runs, name, seed, nats, science=science | own.get(name, {}), **more)
            found.setdefault(name, []).append(nats)
    return found


def test_the_first_answer_is_the_headroom(runs: Path, run: Make) -> None:
    made(runs, run, 4)
    report = make_report([runs], runs_dir=runs)
    found = headroom(report.tables[0])
    assert found is not None
    assert found.by_token is not None
    first, *_ = answers(report.tables[0])
    assert first.question == "headroom"
    assert first.text.startswith(
        f"Headroom in nats a byte: H = T - TD {found.by_token.value:.4f} (95 %: "
    )
    assert first.text.endswith("1 of 2 learned arms are behind T in every seed.")
    assert any("H = T - TD" in line.plain for line in report.brief(80))


def test_differences_are_those_by_hand(runs: Path, run: Make) -> None:
    nats = made(runs, run, 4)
    [table] = make_report([runs], runs_dir=runs).tables
    found = headroom(table)
    assert found is not None
    assert {place.arm.name: place.role for place in found.places if place.role} == {
        "hash": "T",
        "domain_token": "TD",
        "sequence_hash": "S",
        "domain": "D",
    }
    mean = {name: float(np.mean(values)) for name, values in nats.items()}
    assert found.by_token is not None
    assert found.by_sequence is not None
    assert found.by_token.value == pytest.approx(mean["hash"] - mean["domain_token"])
    assert found.by_sequence.value == pytest.approx(mean["sequence_hash"] - mean["domain"])
    alone = mean_interval(np.array(nats["hash"]) - np.array(nats["domain_token"]))
    assert (found.by_token.low, found.by_token.high) == pytest.approx((alone.low, alone.high))
    for place in found.places:
        assert place.nats == pytest.approx(mean[place.arm.name])
        for value, other in ((place.to_token, "hash"), (place.to_domain_token, "domain_token")):
            if place.arm.name == other:
                assert value is None
            else:
                assert value is not None
                assert value.value == pytest.approx(mean[place.arm.name] - mean[other])
    assert [place.arm.name for place in found.places if place.behind and place.learned] == ["micro"]


def texts(runs: Path, **more: Any) -> str:
    return " ".join(make_report([runs], runs_dir=runs, **more).render("table").split())


def test_words_say_what_is_worth_something_and_what_it_does_not_mean(runs: Path, run: Make) -> None:
    made(runs, run, 4)
    text = texts(runs)
    for words in (
        "Headroom, in validation nats a byte",
        r"H = T - TD: to know the domain beside the token is worth 0.0",
        "micro: behind T in every seed. A learned router behind a hash of the token is one that "
        "has not learned yet",
        "global: ahead of TD.",
        "Prescribed routing is no upper bound for routing by token and context",
        "The dense model, of as many active parameters, is 0.1",
    ):
        assert words in text
    assert "know more than the others" not in text
    assert "no interval" not in text


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ({"domain_token": 0.0}, "which cannot be told from 0"),
        ({"domain_token": 0.05}, "beside the token costs 0.0"),
    ],
)
def test_no_headroom_is_said(runs: Path, run: Make, shift: dict[str, float], words: str) -> None:
    made(runs, run, 4, {name: effect for name, (_, effect) in ARMS.items()} | shift)
    assert words in texts(runs)


def test_two_seeds_and_unequal_knowledge_are_named(runs: Path, run: Make) -> None:
    made(runs, run, 2, micro={"data.domain_token": False})
    text = texts(runs)
    assert "in these runs; the seeds allow no interval" in text
    assert "Fewer than three seeds give no interval" in text
    assert "know more than the others" in text


def test_runs_without_prescribed_arms_have_no_headroom(runs: Path, run: Make) -> None:
    run(runs, "micro", 0, 1.6)
    run(runs, "global hash", 0, 1.7, science={"router.map": "hash"})
    [table] = make_report([runs], runs_dir=runs).tables
    assert headroom(table) is None
    assert [role_of(arm) for arm in table.arms] == ["", ""]
    assert "Headroom" not in texts(runs)


def test_arms_come_near_prescribed_routing_in_a_plot(runs: Path, run: Make) -> None:
    rows = [
        {
            "step": step,
            "valid/nats": 2 - step / 1000,
            "specialization/purity": 0.4,
            "valid/bits_per_byte": (2 - step / 1000) / math.log(2),
        }
        for step in range(0, 401, 100)
    ]
    made(runs, run, 3, rows=rows, counts=np.ones((3, 2, 16), np.int64))
    report = make_report([runs], runs_dir=runs)
    [plot] = [each for each in report.plots(report.tables[0]) if each.name == "over-training"]
    assert plot.svg.startswith(b"<svg")
    assert "behind the prescribed router" in plot.caption
    assert "On the way to prescribed routing" in report.page("moebench report")


def test_damaged_routing_leaves_out_the_saturation_alone(runs: Path, run: Make) -> None:
    rows = [
        {"step": step, "valid/nats": 2.0, "specialization/purity": 0.4} for step in (0, 200, 400)
    ]
    made(runs, run, 3, rows=rows)
    for path in runs.iterdir():
        for step in (200, 400):
            Record(path).save_routing(step, {"probe_index": np.zeros((1, 1, 4, 2), np.int64)})

    def panels() -> list[str]:
        report = make_report([runs], runs_dir=runs)
        plot = plots.over_training(report.tables[0], report.frame)
        return [] if plot is None else [panel.name for panel in plot.panels]

    assert panels() == ["purity", "saturation"]
    for path in runs.glob("*/routing/*.npz"):
        path.write_bytes(b"broken")
    assert panels() == ["purity"]
