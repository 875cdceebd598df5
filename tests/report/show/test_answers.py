"""The first lines of a report: who may be called the best."""

from collections.abc import Callable
from pathlib import Path

from moebench.records import Record
from moebench.report import make_report
from moebench.report.show.answers import answers


def test_an_arm_whose_tokens_take_more_experts_is_left_out_of_the_best(
    runs: Path, run: Callable[..., Record]
) -> None:
    for arm, nats, experts in (
        ("global", 1.60, None),
        ("threshold", 1.59, 2.03),
        ("remoe relu", 1.50, 9.24),
    ):
        run(runs, arm, 0, nats, metrics={"load/experts_per_token": experts})
    report = make_report([runs], runs_dir=runs)
    quality = next(each for each in answers(report.tables[0]) if each.question == "quality")
    assert quality.text.startswith(
        "Quality: threshold has the lowest validation loss (valid/nats), "
    )
    assert "left out: remoe relu (9.2 experts a token)." in quality.text
    assert quality.arm == "threshold"
    table = " ".join(report.render("table").split())
    assert "experts" in table
    assert "9.24" in table


def test_equal_means_are_no_range(runs: Path, run: Callable[..., Record]) -> None:
    for arm, load in (("micro", 0.951), ("global", 0.953), ("none", 0.949)):
        run(runs, arm, 0, 1.6, metrics={"load/max_vio_micro": load})
    texts = {each.question: each.text for each in answers(make_report([runs]).tables[0])}
    assert texts["load"] == "Load: MaxVio of micro-batches (0 is even) 0.95 in all 3 arms."


def test_zero_computation_experts_are_an_arm_among_others(
    runs: Path, run: Callable[..., Record]
) -> None:
    run(runs, "global", 0, 1.60)
    run(runs, "budget zero_experts=4", 0, 1.61, science={"model.zero_experts": 4})
    run(runs, "global", 0, 1.62, science={"model.num_experts": 32})
    tables = make_report([runs], runs_dir=runs).tables
    assert sorted(len(table.arms) for table in tables) == [1, 2]
