"""Progress: bars on a terminal, plain lines elsewhere, always on stderr."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from moebench.cli import progress
from moebench.cli.output import print_message
from moebench.cli.progress import SweepDisplay, TrainDisplay, describe_row
from moebench.lock import hold
from moebench.records import Record
from moebench.study import Job, Launcher, Plan
from moebench.study.engines.local import Local
from moebench.study.launcher import Elsewhere

ROW = {"train/loss": 5.25, "valid/nats": 5.125, "speed/tokens_per_second": 12345.6}
WORDS = "loss 5.250  valid 5.1250  12,346 tok/s"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Everything that is sent to a terminal of 80 columns."""
    sent = io.StringIO()
    made = Console(file=sent, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "stderr_console", lambda: made)
    return sent


def test_a_row_is_described_in_words() -> None:
    assert describe_row(ROW) == WORDS
    more = {"load/max_vio_micro": 0.5, "specialization/domain": 0.125}
    parts = ["loss 5.250", "MaxVio 0.50", "domain bits 0.125", "valid 5.1250", "12,346 tok/s"]
    assert describe_row(ROW | more).split("  ") == parts
    assert describe_row({}) == ""
    assert describe_row({"train/loss": None, "valid/nats": "[/red]"}) == ""


def test_a_message_is_printed_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_message("[red] [/nope] \x1b[31m " + "x" * 200)
    assert capsys.readouterr() == ("", "[red] [/nope] �[31m " + "x" * 200 + "\n")


def test_without_a_terminal_evaluations_are_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TrainDisplay("global-s0", 4) as display:
        display.update(0, {"valid/ppl": 9.0, "valid/nats": 5.125})
        for step in range(1, 4):
            display.update(step, {"train/loss": 5.25})
        display.update(4, ROW | {"valid/ppl": 9.0})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "global-s0  step 0/4  valid 5.1250",
        f"global-s0  step 4/4  {WORDS}",
    ]


def test_a_run_has_a_bar_on_a_terminal(terminal: io.StringIO) -> None:
    with TrainDisplay("[red]-s0", 4) as display:
        for step in range(5):
            display.update(step, ROW)
    last = terminal.getvalue().splitlines()[-2]
    assert "[red]-s0" in last
    assert "4/4 loss 5.250  valid 5.1250" in last
    assert last.rstrip().endswith("left")


@pytest.mark.parametrize(
    ("width", "shown"), [(60, "loss 5.250"), (80, "loss 5.250  MaxVio 0.50"), (120, "tok/s")]
)
def test_a_description_has_the_parts_for_which_there_is_room(
    monkeypatch: pytest.MonkeyPatch, width: int, shown: str
) -> None:
    sent = io.StringIO()
    made = Console(file=sent, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, "stderr_console", lambda: made)
    row = ROW | {"load/max_vio_micro": 0.5, "specialization/domain": 0.125}
    with TrainDisplay("micro-s0", 4) as display:
        display.update(2, row)
    last = sent.getvalue().splitlines()[-2]
    assert shown in last
    cut = last.partition("2/4 ")[2].partition(" -:--")[0].rstrip()
    assert describe_row(row).startswith(cut)
    assert describe_row(row)[len(cut) :].startswith("  ") or cut == describe_row(row)


def launcher(folder: Path) -> Launcher:
    config = {"train": {"steps": 4}}
    jobs = (Job(n, f"arm-s{n}", "arm", "0", n, (), config) for n in range(2))
    plan = Plan("sweep", "", "", "arm", "valid/nats", tuple(jobs))
    return Launcher(plan, folder, Local(1))


class Running:
    def __init__(self, job: Job) -> None:
        self.job, self.jobs = job, (job,)


def watch(folder: Path) -> None:
    """Show two jobs: one that ends without any metrics, and one that fails."""
    made = launcher(folder)
    with SweepDisplay(made) as display:
        for job, status in zip(made.plan.jobs, ({}, {"reason": "step 3: [nan]"}), strict=True):
            record = Record(folder / job.run)
            made.running = [Running(job)]  # pyright: ignore[reportAttributeAccessIssue]
            display.refresh()
            record.begin("a: 1", {})
            record.set_status("running", step=2, **ROW)
            display.refresh()
            if status:
                record.set_status("failed", step=2, **status)
            else:
                record.set_status("done", step=4)
                record.seal({})
            made.running = []
            display.refresh()


def test_a_sweep_prints_how_each_run_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["done  arm-s0", "failed  arm-s1  step 3: [nan]"]


def test_a_sweep_prints_once_which_run_it_waits_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = launcher(tmp_path)
    made.waiting = []
    job = made.plan.jobs[0]
    record = Record(tmp_path / job.run)
    with SweepDisplay(made) as display:
        made.elsewhere = [Elsewhere(job, 0.0)]
        with hold(record):
            record.begin("a: 1", {})
            record.set_status("running", step=2, **ROW)
            display.refresh()
            display.refresh()
            record.set_status("done", step=4)
            record.seal({})
        made.elsewhere = []
        display.refresh()
    assert capsys.readouterr().err.splitlines() == [
        "elsewhere  arm-s0  another process trains it; this sweep waits",
        "done  arm-s0",
    ]


def test_a_sweep_has_bars_on_a_terminal(tmp_path: Path, terminal: io.StringIO) -> None:
    watch(tmp_path)
    shown = terminal.getvalue()
    assert "failed  arm-s1  step 3: [nan]" in shown
    assert "arm-s1" in shown
    last = shown.splitlines()[-2]
    assert "all runs" in last
    assert "6/8" in last
    assert "1 of 2 done" in last
