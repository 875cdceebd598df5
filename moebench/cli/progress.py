"""What a long command shows while it works: bars on a terminal, plain lines elsewhere.

Everything goes to stderr; stdout is for data. Rich leaves out colour where NO_COLOR is set.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from moebench.records import printable
from moebench.study.launcher import LocalLauncher
from moebench.study.plan import Job
from moebench.study.status import last_word, state_of, without_run

PLAIN_EVERY = 10.0  # seconds between plain lines

Item = TypeVar("Item")


def console() -> Console:
    """The console of everything that is not data."""
    return Console(stderr=True, highlight=False)


def say(text: str, to: Console | None = None) -> None:
    """Print a line as it is, whatever it holds, beside the data."""
    (to or console()).print(printable(text), markup=False, soft_wrap=True)


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


class Display:
    """Bars that are there while it is entered, and lines where there is no terminal."""

    def __init__(self) -> None:
        self.console = console()
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            # What is said last is cut first where the terminal is narrow.
            TextColumn("{task.fields[now]}", table_column=Column(ratio=1, no_wrap=True)),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self.told = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def tell(self, line: str, *, now: bool = False) -> None:
        """Say a line where there is no terminal: now, or if none was said for a while."""
        if not self.console.is_terminal and (now or time.monotonic() - self.told > PLAIN_EVERY):
            self.told = time.monotonic()
            say(line, self.console)


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Items as they come, with a bar on a terminal and a plain line now and then elsewhere."""
    with Display() as display:
        task = display.bars.add_task(what, total=total, now="")
        for number, item in enumerate(items, 1):
            display.bars.update(task, completed=number)
            display.tell(f"{what}: {number} of {total}")
            yield item


class TrainDisplay(Display):
    """The progress of one run; give `update` every step."""

    def __init__(self, name: str, steps: int) -> None:
        super().__init__()
        self.name = name
        self.steps = steps
        self.latest: dict[str, Any] = {}
        self.task: TaskID | None = None

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
        elif row:
            line = f"{self.name}  step {step}/{self.steps}  {now}"
            self.tell(line, now="valid/ppl" in row)


class DataDisplay(Display):
    """The progress of a preparation of data; give its `bar` what is done and the share that is.

    Attributes:
        bar: None where there is no terminal to draw it on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar = self._update if self.console.is_terminal else None
        self.task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        say(text, self.console)

    def _update(self, words: str, share: float) -> None:
        if self.task is None:
            self.task = self.bars.add_task("", total=100, now="")
        self.bars.update(self.task, completed=round(100 * share), description=escape(words))


class SweepDisplay(Display):
    """The progress of a launcher's jobs, and of the whole by its steps."""

    def __init__(self, launcher: LocalLauncher) -> None:
        super().__init__()
        self.launcher = launcher
        self.jobs = {job.id: job for job in launcher.plan.jobs}
        self.steps = {job.id: job.config["train"]["steps"] for job in launcher.plan.jobs}
        self.done = {
            number: self.steps[number]
            for number, job in self.jobs.items()
            if launcher.record(job).is_done()
        }
        self.total = self.bars.add_task(
            "all runs", total=sum(self.steps.values()), completed=sum(self.done.values()), now=""
        )
        self.tasks: dict[int, TaskID] = {}
        self.elsewhere: set[int] = set()

    def refresh(self) -> None:
        """Look at the status files of the jobs that run, and say which have ended."""
        here = {job.id for each in self.launcher.running for job in each.jobs}
        elsewhere = {each.job.id for each in self.launcher.elsewhere}
        for number in (here | elsewhere) - self.tasks.keys():
            self.tasks[number] = self.bars.add_task(
                escape(self.jobs[number].run), total=self.steps[number], now="starting"
            )
        for number in elsewhere - self.elsewhere:
            run = self.jobs[number].run
            say(f"elsewhere  {run}  another process trains it; this sweep waits", self.console)
        self.elsewhere = elsewhere
        said = []
        for number, task in list(self.tasks.items()):
            job = self.jobs[number]
            status = last_word(self.launcher.record(job))
            step = int(status.get("step", 0))
            self.done[number] = step
            words = in_words(status) or "starting"
            self.bars.update(
                task, completed=step, now=f"elsewhere  {words}" if number in elsewhere else words
            )
            said.append(f"{job.run} {step}/{self.steps[number]}")
            if number not in here | elsewhere:
                self.bars.remove_task(task)
                del self.tasks[number]
                self._ended(job)
        finished = sum(self.launcher.record(job).is_done() for job in self.jobs.values())
        words = f"{finished} of {len(self.steps)} done"
        self.bars.update(self.total, completed=sum(self.done.values()), now=words)
        share = sum(self.done.values()) / sum(self.steps.values())
        self.tell(f"{share:.0%}  {words}  {'  '.join(said)}")

    def _ended(self, job: Job) -> None:
        status = state_of(self.launcher.record(job))
        why = without_run(job.run, str(status.get("reason") or in_words(status)))
        say(f"{status['state']}  {job.run}  {why}".rstrip(), self.console)
