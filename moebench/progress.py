"""What a long command shows while it works: bars on a terminal, plain lines elsewhere.

Everything goes to stderr; stdout is for data. Rich leaves out colour where NO_COLOR is set.
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from moebench.records import printable
from moebench.study import LocalLauncher, state_of

PLAIN_EVERY = 10.0  # seconds between plain lines


def console() -> Console:
    """The console of everything that is not data."""
    return Console(stderr=True, highlight=False)


def say(text: str, to: Console | None = None) -> None:
    """Print a line as it is, whatever it holds, beside the data."""
    (to or console()).print(printable(text), markup=False, soft_wrap=True)


def _bars(to: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        # What is said last is cut first where the terminal is narrow.
        TextColumn("{task.fields[now]}", table_column=Column(ratio=1, no_wrap=True)),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=to,
        expand=True,
        disable=not to.is_terminal,
    )


def in_words(row: Mapping[str, Any]) -> str:
    """Losses in nats per token, load and speed of a row, as far as it has them."""
    said = []
    for key, word, form in (
        ("train/loss", "loss", "{:.3f}"),
        ("valid/nats", "valid", "{:.4f}"),
        ("load/max_vio_batch", "MaxVio", "{:.2f}"),
        ("speed/tokens_per_second", "", "{:,.0f} tok/s"),
    ):
        if isinstance(row.get(key), int | float):
            said.append(f"{word} {form.format(row[key])}".strip())
    return "  ".join(said)


class TrainDisplay:
    """The progress of one run; give `update` every step."""

    def __init__(self, name: str, steps: int) -> None:
        self.console = console()
        self.name = name
        self.steps = steps
        self.latest: dict[str, Any] = {}
        self.told = 0.0
        self.bars = _bars(self.console)
        self.task: TaskID | None = None

    def __enter__(self) -> "TrainDisplay":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def update(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Show that `step` is done, with its metrics if it has some."""
        self.latest |= row or {}
        now = in_words(self.latest)
        if self.console.is_terminal:
            if self.task is None:
                # added late, so that time left is that of this process
                self.task = self.bars.add_task(
                    escape(self.name), total=self.steps, completed=step, now=now
                )
            self.bars.update(self.task, completed=step, now=now)
        elif row and ("valid/ppl" in row or time.monotonic() - self.told > PLAIN_EVERY):
            self.told = time.monotonic()
            say(f"{self.name}  step {step}/{self.steps}  {now}", self.console)


class DataDisplay:
    """The progress of a preparation of data; give its `bar` what is done and the share that is.

    Attributes:
        bar: None where there is no terminal to draw it on.
    """

    def __init__(self) -> None:
        self.console = console()
        self.bars = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
        )
        self.bar = self._update if self.console.is_terminal else None
        self.task: TaskID | None = None

    def __enter__(self) -> "DataDisplay":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.task is not None:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        say(text, self.console)

    def _update(self, words: str, share: float) -> None:
        if self.task is None:
            self.bars.start()
            self.task = self.bars.add_task("", total=1.0)
        self.bars.update(self.task, completed=share, description=escape(words))


class SweepDisplay:
    """The progress of a launcher's jobs, and of the whole by its steps."""

    def __init__(self, launcher: LocalLauncher) -> None:
        self.launcher = launcher
        self.console = console()
        self.bars = _bars(self.console)
        self.steps = {job.id: job.config["train"]["steps"] for job in launcher.plan.jobs}
        self.done = {
            job.id: self.steps[job.id]
            for job in launcher.plan.jobs
            if launcher.record(job).is_done()
        }
        self.total = self.bars.add_task(
            "all runs", total=sum(self.steps.values()), completed=sum(self.done.values()), now=""
        )
        self.tasks: dict[int, TaskID] = {}
        self.told = time.monotonic()

    def __enter__(self) -> "SweepDisplay":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def refresh(self) -> None:
        """Look at the status files of the jobs that run, and say which have ended."""
        at_work = {each.job.id: each.job for each in self.launcher.running}
        for number in at_work.keys() - self.tasks.keys():
            self.tasks[number] = self.bars.add_task(
                escape(at_work[number].run), total=self.steps[number], now="starting"
            )
        said = []
        for number, task in list(self.tasks.items()):
            job = self.launcher.plan.jobs[number]
            status = state_of(self.launcher.record(job))
            step = int(status.get("step", 0))
            self.done[number] = step
            self.bars.update(task, completed=step, now=in_words(status) or "starting")
            said.append(f"{job.run} {step}/{self.steps[number]}")
            if number not in at_work:
                self.bars.remove_task(task)
                del self.tasks[number]
                self._ended(job.run, status)
        finished = sum(self.launcher.record(job).is_done() for job in self.launcher.plan.jobs)
        words = f"{finished} of {len(self.steps)} done"
        self.bars.update(self.total, completed=sum(self.done.values()), now=words)
        if not self.console.is_terminal and time.monotonic() - self.told > PLAIN_EVERY:
            self.told = time.monotonic()
            share = sum(self.done.values()) / sum(self.steps.values())
            say(f"{share:.0%}  {words}  {'  '.join(said)}", self.console)

    def _ended(self, run: str, status: Mapping[str, Any]) -> None:
        why = status.get("reason") or in_words(status)
        say(f"{status['state']}  {run}  {why}".rstrip(), self.console)
