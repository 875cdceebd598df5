"""`moebench sweep --margin`: what it is for, and where it comes from."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from moebench.cli import deciding
from moebench.cli.margin import read_margin
from moebench.plans import Plan


@pytest.mark.parametrize(
    ("finding", "told"),
    [
        ("01-global-below-micro", "margin 0.1 nats a byte"),
        ("04-falls-with-balance-bsz", "margin 0.1 nats a byte a doubling"),
        ("05-pure-micro-batches", "margin 0.1 nats a byte from mixed to pure"),
        ("08-buffer-equals-exact", "margin 0.1 nats a byte"),
        ("15-global-bias-micro", "no stop by margin, which a ranking does not have"),
    ],
)
def test_what_the_margin_is_for_is_told(finding: str, told: str) -> None:
    out = StringIO()
    plan = Plan(
        "any", "", "", "micro", "valid/nats", (), order=(finding,), most_seeds=12, margin=0.1
    )
    deciding.print_rule(plan, Console(file=out, width=200))
    assert out.getvalue().strip().endswith(f"seeds; {told}")


def test_a_margin_may_be_a_quarter_of_a_headroom(tmp_path: Path) -> None:
    from tests.report.conftest import make_plan, make_run

    records = []
    for seed in range(3):
        for arm, kind, nats in (("hash", "hash", 1.6), ("domain_token", "domain_token", 1.52)):
            science = {"router.map": kind, "scope": "none"}
            records.append(make_run(tmp_path, arm, seed, nats + seed / 9, science=science))
    make_plan(tmp_path, "headroom", records)
    margin, source = read_margin("headroom", tmp_path)
    assert margin == pytest.approx(0.02)
    assert source == "a quarter of H = 0.08000 nats a byte of headroom"
