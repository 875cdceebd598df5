"""The table of noise, from fake records of A/A twins on tuning seeds."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.noise import Setting, settings_of, table
from benchmarks.trials import trials_of
from benchmarks.tuning_runs import named, rows_in, usual, with_metrics
from moebench.errors import RecordError
from moebench.records import Record
from moebench.report.read.frame import load

Make = Callable[..., Record]
SEALED = ("schema_version", "files", "sha256")


def twins(runs: Path, run: Make, steps: int, first: int = 1000) -> None:
    rng = np.random.default_rng(steps)
    for seed in range(first, first + 3):
        for perturb in (0.0, 1e-6, 2e-6):
            nats = 1.6 + 0.1 * (seed % 10) + 0.004 * rng.normal()
            science = {"train.steps": steps} | ({"router.perturb": perturb} if perturb else {})
            tune = {"tune/bits_per_byte": (nats + 0.001 * rng.normal()) / math.log(2)}
            run(runs, "micro", seed, nats, science=science, metrics=tune, rows=[])


def test_contrasts_have_the_variance_of_a_paired_difference() -> None:
    """Of runs of deviation s it is 2 s^2, and chance of the text is told from that of training."""
    rng = np.random.default_rng(0)
    setting = Setting({})
    for seed in range(4000):
        train = 3.0 * rng.normal(size=3)
        halves = [tuple(each + 4.0 * rng.normal(size=2)) for each in train]
        setting.twins["micro", seed] = halves  # pyright: ignore
    assert setting.noise().pairs == 8000
    assert setting.noise().sd == pytest.approx(5 * math.sqrt(2), rel=0.03)
    assert setting.noise(None).sd == pytest.approx(math.sqrt(2 * (9 + 8)), rel=0.03)
    assert setting.of_text() == pytest.approx(16 / 25, abs=0.03)


def test_every_setting_has_a_row(runs: Path, run: Make) -> None:
    twins(runs, run, 400)
    twins(runs, run, 800)
    settings = settings_of(with_metrics(load([runs])))
    assert [setting.noise().pairs for setting in settings] == [6, 6]
    for setting in settings:
        assert 0.002 < setting.noise().sd < 0.012
    header, _, *lines = table(settings).splitlines()
    assert header.count("|") == 10
    assert {line.split(" | ")[0] for line in lines} == {"| train.steps=400", "| train.steps=800"}
    assert lines[0].endswith("| 1.00 |")


def test_reported_seeds_and_runs_without_twins_have_no_row(runs: Path, run: Make) -> None:
    run(runs, "micro", 1000, 1.6)
    assert settings_of(with_metrics(load([runs]))) == []
    twins(runs, run, 400, first=0)
    for table_of in (settings_of, trials_of):
        with pytest.raises(RecordError, match="seed 0 is one that is reported"):
            table_of(with_metrics(load([runs])))


def test_a_record_that_cannot_be_read_is_named(
    runs: Path, run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run(runs, "micro", 1000)
    damaged = run(runs, "global", 1000)
    (damaged.path / "summary.json").write_text("{")
    assert [row["arm"] for row in rows_in([runs])] == ["micro"]
    assert f"left out: {damaged.name}: " in capsys.readouterr().err


def test_a_text_is_named_by_what_was_typed(runs: Path, run: Make) -> None:
    """Its hash says nothing to a reader. How a run draws from it is told by the run alone."""
    for text, keys in {
        "01ab": "",
        "23cd": "data: {domains: [a, b], path: /x, split: train, homogeneity: 0.0}",
    }.items():
        record = run(runs, "micro", 1000, science={"data": text}, rows=[])
        (record.path / "config.yaml").write_text(f"seed: 1000\n{keys}\n")
        record.seal({key: of for key, of in record.summary().items() if key not in SEALED})
    settings = [row["science"] for row in with_metrics(load([runs]))]
    assert sorted(named(settings)) == ["as the others", "data.domains=[a,b]"]


def test_copies_that_ended_otherwise_say_what_to_do(
    runs: Path, run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root, nats in ((runs, 1.6), (tmp_path / "copy", 1.7)):
        run(root, "micro", 1000, nats, rows=[])
    assert len(rows_in([runs, tmp_path / "copy"])) == 1
    assert "remove the copy that should not count" in capsys.readouterr().err


def test_settings_are_named_by_what_is_not_usual() -> None:
    settings = [{"a": 1, "b": place, "c": 2 if place else 3, "d": 4} for place in range(5)]
    assert usual(settings) == {"c": 2}
    assert named(settings) == ["b=0, c=3", "b=1", "b=2", "b=3", "b=4"]
    assert named(settings[:2]) == ["b=0, c=3", "b=1, c=2"]
    assert named([settings[0] | {"router.init": 10}]) == ["router.init=10"]


def test_a_key_that_a_setting_leaves_at_its_default_is_not_usual() -> None:
    settings = [*({"a": place, "router.init": 10} for place in range(4)), {"a": 4}]
    assert usual(settings) == {}
    assert named(settings) == [*(f"a={place}, router.init=10" for place in range(4)), "a=4"]
