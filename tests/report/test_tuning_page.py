"""What docs/results.md says of runs on tuning seeds, from fake records of them."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.trials import Trial, table
from docs.published import records, tuned
from docs.published.study import Study, lost
from moebench.errors import RecordError
from tests.report.conftest import make_plan, make_run

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "results.py"))
SETTINGS: dict[str, dict[str, Any]] = {"": {}, "final=0": {"optim.final": 0.0}}


def sweeps(runs: Path) -> None:
    """A sweep named noise of two settings with twins, and one run that chose a weight."""
    noise = [
        make_run(
            runs,
            f"micro {name} {perturb}",
            seed,
            1.6 + 0.001 * ((7 * seed + 3 * place + 2 * number) % 5) * (1 + 3 * number),
            science=own | ({"router.perturb": perturb} if perturb else {}),
            metrics={"tune/bits_per_byte": (1.6 + 0.001 * place) / math.log(2)},
            rows=[],
        )
        for seed in (1000, 1001)
        for number, (name, own) in enumerate(SETTINGS.items())
        for place, perturb in enumerate((0.0, 1e-6, 2e-6))
    ]
    make_plan(runs, "noise", noise, typed=["--name", "noise", "seed=1000,1001"])
    weight = make_run(runs, "global", 1000, 1.7, science={"balance_bsz": 128}, rows=[])
    make_plan(runs, "weights", [weight], typed=["--name", "weights", "seed=1000"])


def test_noise_has_a_csv_and_a_table_of_its_own(runs: Path) -> None:
    sweeps(runs)
    found = records.tuned([runs], "a processor", print)
    assert {name: len(study.runs) for name, study in found.items()} == {"noise": 12, "tuning": 1}
    page = SCRIPT["generated"]({n: Study.of_csv(of.to_csv()) for n, of in found.items()})
    part = page.split("### Noise")[1]
    rows = [line.split(" | ")[:2] for line in part.splitlines() if line.startswith("| ")][1:]
    assert rows == [["| as the others", "4"], ["| optim.final=0", "4"]]
    assert "Two deviations from 4 pairs each are told apart (F test, 5 %) where one is at" in part
    assert "3.1 times the other: `as the others` below `optim.final=0`." in part
    assert "not run yet" not in part
    assert "moebench sweep --name noise seed=1000,1001\n" in part


def test_one_run_in_two_directories_stays_in_both_csvs(runs: Path, tmp_path: Path) -> None:
    """A run that chose a size has the identity of one that measures noise, under another name."""
    sweeps(runs)
    other = tmp_path / "other"
    copy = make_run(other, "micro  0.0", 1000, 1.6, rows=[])
    (other / copy.name).rename(other / "micro-s1000-renamed")
    for roots in ([runs, other], [other, runs]):
        found = records.tuned(roots, "a processor", print)
        assert {name: len(study.runs) for name, study in found.items()} == {
            "noise": 12,
            "tuning": 2,
        }


def test_without_noise_the_page_tells_how_to_measure_it() -> None:
    study = "moebench sweep study=scope train.steps=600 optim.lr=1 data=folder data.path=DIR"
    commands = tuned.noise_commands(f"{study} 'seed=range(100,116)' --margin 0.0029")
    start = (
        "moebench sweep --name noise scope=micro router.perturb=0,1e-6,2e-6 "
        "seed=1000,1001,1002,1003 train.eval_every=0 data=folder data.path=DIR "
    )
    assert commands == [
        f"{start}train.steps=600 optim.final=0.1,0",
        f"{start}train.steps=600 optim.ema=0.2",
        f"{start}train.steps=1200",
    ]


def test_trials_are_compared_on_the_seeds_that_all_have() -> None:
    """A seed on which routers learn well would else pass for a setting."""
    few, many = (Trial({"train.steps": steps}) for steps in (400, 800))
    for trial, seeds in ((few, (1000,)), (many, (1000, 1001, 1002))):
        for seed in seeds:
            run = "global", seed
            trial.nats[run], trial.own[run] = 1.6 + 0.02 * (seed - 1000), 1.6
            trial.vio[run] = 0.5
    many.plain["global", 1000] = 1.61
    *_, first, second = table([few, many]).splitlines()
    assert first == "|  | 400 | 0.02 | 1 | 1 | global | 1 | 0.0000 |  |  | 0.50 |"
    assert second == "|  | 800 | 0.02 | 1 | 1 | global | 3 | 0.0000 | -0.0100 | 0.0200 | 0.50 |"
    many.nats["micro", 1000], many.own["micro", 1000] = 1.9, 1.6
    *_, second = table([few, many]).splitlines()
    assert "| global, micro | 3 | 0.1500 | -0.0100 | 0.0200 |" in second


def test_a_csv_that_would_lose_runs_is_not_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps(runs)
    tables = tmp_path / "results"
    monkeypatch.setitem(SCRIPT["write"].__globals__, "TABLES", tables)
    SCRIPT["write"]([runs], "a processor", unfinished=False)
    noise = (tables / "noise.csv").read_text()
    few = tmp_path / "few"
    make_run(few, "micro", 1003, 1.6, rows=[])
    with pytest.raises(RecordError, match=r"tuning.csv: RUNS lack 1 of its 1 runs; name all"):
        SCRIPT["write"]([few], "a processor", unfinished=False)
    SCRIPT["write"]([few, runs], "a processor", unfinished=False)
    assert len(Study.of_csv((tables / "tuning.csv").read_text()).runs) == 2
    assert (tables / "noise.csv").read_text() == noise
    again = Study.of_csv(noise)
    again.runs = again.runs[2:]
    assert (lost(Study.of_csv(noise), again), lost(again, Study.of_csv(noise))) == (2, 0)
