"""The picture of loss against load, from a study of weights."""

import math
from itertools import product
from typing import Any

import pytest

from docs.published.frontier import frontier
from docs.published.labels import Room, around, size_of
from docs.published.study import Study
from moebench.report.draw.style import Spec
from tests.report.conftest import SCIENCE

SCOPES = {
    "micro": {"balance_bsz": 4},
    "shuffled": {"scope": "shuffled", "balance_bsz": 128},
    "global": {"balance_bsz": 128},
}
WEIGHTS = (0.1, 0.02, 0.5)
LOADS = {0.02: 1.0, 0.1: 0.5, 0.5: 0.25}


def study_of(scopes: tuple[str, ...] = ("micro", "global")) -> Study:
    """Each scope at three weights: the loss is 1 at the smallest, and more of narrower scopes."""
    study = Study({"study": "weight"})
    for (place, scope), weight in product(enumerate(scopes), WEIGHTS):
        nats = 1 + (weight - 0.02) / (1 + place)
        science = SCIENCE | SCOPES[scope] | {"loss.balance": weight}
        arm = f"{scope} loss.balance={weight}"
        study.runs += [
            run_of(arm, seed, nats, LOADS[weight] + seed / 8, science) for seed in (0, 1)
        ]
    return study


def run_of(arm: str, seed: int, nats: float, load: float, science: Any) -> dict[str, Any]:
    metrics = {"valid/bits_per_byte": nats / math.log(2), "load/max_vio_global": load}
    return {"arm": arm, "seed": seed, "part": "", "science": science, "metrics": metrics}


def effect(name: str, arm: str, **cells: Any) -> dict[str, Any]:
    of = {"arm": arm, "against": "micro", "metric": "valid/nats", "text": "", "p": None}
    return {"name": name, "level": 0.05, "value": None, "low": None, "high": None, **of, **cells}


def layers_of(study: Study) -> list[Spec]:
    plot = frontier(study)
    assert plot is not None
    return plot.panels[0].spec["layer"]


def shown(study: Study, kind: str) -> list[dict[str, Any]]:
    """The data of all layers of a kind of mark; of words, without what is behind them."""
    found = []
    for layer in layers_of(study):
        mark = layer["mark"] if isinstance(layer["mark"], dict) else {"type": layer["mark"]}
        if mark["type"] == kind and mark.get("stroke") != "white":
            found += layer["data"]["values"]
    return found


def words(study: Study) -> list[list[str]]:
    """The lines of each."""
    return [row["text"] for row in shown(study, "text")]


def test_a_line_is_a_scope_through_means_over_seeds_in_the_order_of_weights() -> None:
    lines = shown(study_of(), "line")
    assert [(row["scope"], row["weight"], row["x"]) for row in lines] == [
        *(("micro", 0.02, 1.0625), ("micro", 0.1, 0.5625), ("micro", 0.5, 0.3125)),
        *(("global", 0.02, 1.0625), ("global", 0.1, 0.5625), ("global", 0.5, 0.3125)),
    ]
    assert [row["y"] for row in lines] == pytest.approx([1.0, 1.08, 1.48, 1.0, 1.04, 1.24])


def test_a_scope_of_two_weights_is_no_line() -> None:
    study = study_of()
    study.runs = [run for run in study.runs if run["science"]["loss.balance"] < 0.5]
    assert frontier(study) is None


def test_an_arm_whose_load_was_not_measured_is_no_point() -> None:
    study = study_of()
    del study.runs[0]["metrics"]["load/max_vio_global"]
    assert {row["scope"] for row in shown(study, "line")} == {"global"}


def test_arms_that_differ_in_more_than_the_weight_are_no_line_over_weights() -> None:
    study = Study({"study": "estimator"})
    for size in (4, 8, 16):
        science = SCIENCE | SCOPES["global"] | {"loss.balance": 0.1, "balance.pass_bsz": size}
        study.runs.append(run_of(f"buffer={size}", 0, 1.0, 0.1, science))
    assert frontier(study) is None


def test_points_of_tested_pairs_are_full() -> None:
    study = study_of()
    pair = {"against": "micro loss.balance=0.1", "value": -0.04}
    study.effects = [
        effect("finding", "global loss.balance=0.1", p=0.01, **pair),
        effect(
            "finding", "global loss.balance=0.5", **pair | {"against": "micro loss.balance=0.5"}
        ),
    ]
    full = {(row["scope"], row["weight"]) for row in shown(study, "line") if row["tested"]}
    assert full == {("micro", 0.1), ("global", 0.1)}


def test_points_have_their_weights_once_where_scopes_meet_and_lines_their_names() -> None:
    named = [line for [line] in words(study_of(("micro", "shuffled", "global")))]
    assert named[:4] == ["0.02", "0.1", "weight 0.5", "micro"]
    assert named[4:] == ["0.1", "0.5", "global", "shuffled"]


def test_the_caption_speaks_of_a_line_between_only_where_there_is_one() -> None:
    two, three = (frontier(study_of(scopes)) for scopes in (("micro", "global"), tuple(SCOPES)))
    assert two is not None
    assert three is not None
    assert "those of the line between" in three.caption
    assert "between" not in two.caption
    assert "numbers are `loss.balance`. Full points" in two.caption


def test_words_keep_off_points_lines_and_other_words() -> None:
    room = Room(100.0, 100.0)
    room.point(50.0, 50.0)
    room.line((50.0, 50.0), (100.0, 50.0))
    size = (20.0, 10.0)
    first = room.place(size, around((50.0, 50.0), size))
    assert first == (40.0, 34.0)  # above: a line is on the right
    assert room.place(size, around((50.0, 50.0), size)) == (22.0, 45.0)  # on the left
    assert room.place(size, [(-5.0, 0.0), (4.0, 0.0), (5.0, 0.0)]) == (4.0, 0.0)
    other = [((0.0, 75.0), (100.0, 75.0))]
    assert room.place(size, [(10.0, 60.0), (10.0, 90.0)], other) == (10.0, 90.0)
    assert size_of(["weight", "0.5"], 10.0, 12.0)[0] > size_of(["0.05"], 10.0, 12.0)[0]


def test_no_balance_has_a_point_and_makes_room_for_it() -> None:
    study = study_of()
    narrow = layers_of(study)[0]["encoding"]["x"]["scale"]["domain"]
    study.runs.append(run_of("none", 0, 1.1, 4.0, SCIENCE | {"scope": "none"}))
    assert ["no balance"] in words(study)
    low, high = layers_of(study)[0]["encoding"]["x"]["scale"]["domain"]
    assert low < narrow[0]
    assert narrow[1] < 4.0 < high


def test_the_words_are_the_effects_of_the_last_scope() -> None:
    study = study_of()
    study.effects = [
        effect("equal MaxVio", "micro", text="MaxVio 0.50"),
        effect("equal MaxVio", "global", text="MaxVio 0.50", value=-0.02, low=-0.03, high=-0.01),
        effect("best weight", "global", value=0.001, low=-0.002, high=0.004),
    ]
    assert words(study)[:2] == [
        ["At equal loads (MaxVio 0.50)", "global is 0.0200 lower", "(95 %: 0.0100 to 0.0300)"],
        ["At the best weight of each", "global is 0.0010 higher", "(95 %: -0.0020 to 0.0040)"],
    ]
    [dashed] = shown(study, "rule")
    assert dashed["x"] == 0.5
    assert 1.04 < dashed["end"] < dashed["y"] < 1.48


def test_scopes_whose_loads_do_not_overlap_have_no_line_between() -> None:
    study = study_of()
    study.effects = [effect("equal MaxVio", arm) for arm in SCOPES]
    assert shown(study, "rule") == []
