"""Progress of long commands on stderr: bars on a terminal, plain lines elsewhere.

Rich leaves out colour where NO_COLOR is set.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from moebench.cli.output import print_message, stderr_console
from moebench.plans import Job
from moebench.study.launcher import Launcher
from moebench.study.status import current_status, in_sweep, last_status

PLAIN_EVERY = 10.0  # seconds between plain lines
LOOKING = 0.1  # most of a sweep's time that is spent on the status of its runs, if there are many
MANY = 50
GAP = "  "  # between the parts of a description

Item = TypeVar("Item")


DESCRIBED = (  # metric, name and form, the most important first
    ("train/loss", "loss", "{:.3f}"),
    ("load/max_vio_micro", "MaxVio", "{:.2f}"),
    ("specialization/domain", "domain bits", "{:.3f}"),
    ("valid/nats", "valid", "{:.4f}"),
    ("speed/tokens_per_second", "", "{:,.0f} tok/s"),
)


def describe_row(row: Mapping[str, Any]) -> str:
    """Losses (nats per token), MaxVio, domain bits and speed of a metrics row, if it has them."""
    words = [
        f"{name} {form.format(row[key])}".strip()
        for key, name, form in DESCRIBED
        if isinstance(row.get(key), int | float)
    ]
    return GAP.join(words)


class Fitting:
    """As many parts of a description as its column has room for: no number is broken."""

    def __init__(self, detail: str) -> None:
        self.parts = detail.split(GAP)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        shown = self.parts[0]
        for part in self.parts[1:]:
            if cell_len(shown) + len(GAP) + cell_len(part) > options.max_width:
                break
            shown += GAP + part
        yield Text(shown, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widest = cell_len(GAP.join(self.parts))
        return Measurement(min(cell_len(self.parts[0]), widest), widest).with_maximum(
            options.max_width
        )


class DetailColumn(ProgressColumn):
    """What a task says of itself."""

    def render(self, task: Task) -> Fitting:
        return Fitting(task.fields["detail"])


class Display:
    """A context manager that shows bars on a terminal, and prints lines where there is none."""

    def __init__(self) -> None:
        self.console = stderr_console()
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, width=5)),  # takes the rest
            MofNCompleteColumn(),
            DetailColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        print_message(text, self.console)

    def print_plain(self, text: str, *, now: bool = False) -> None:
        """Without a terminal, print a line: now, or if the last is PLAIN_EVERY seconds old."""
        due = now or time.monotonic() - self.last_line > PLAIN_EVERY
        if due and not self.console.is_terminal:
            self.last_line = time.monotonic()
            self.print(text)


def track(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items, and show how many of `total` have been yielded."""
    with Display() as display:
        task = display.bars.add_task(description, total=total, detail="")
        for number, item in enumerate(items, 1):
            display.bars.update(task, completed=number)
            display.print_plain(f"{description}: {number} of {total}")
            yield item


class TrainDisplay(Display):
    """The progress of one run. Call `update` after every step."""

    def __init__(self, name: str, steps: int) -> None:
        super().__init__()
        self.name = name
        self.steps = steps
        self.latest: dict[str, Any] = {}
        self.task: TaskID | None = None

    def update(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Show that `step` steps are done, and the latest metrics."""
        self.latest |= row or {}
        detail = describe_row(self.latest)
        if self.console.is_terminal:
            if self.task is None:
                # Added only now: the steps of an earlier process would distort the time left.
                self.task = self.bars.add_task(
                    escape(self.name), total=self.steps, completed=step, detail=detail
                )
            self.bars.update(self.task, completed=step, detail=detail)
        elif row:
            line = f"{self.name}  step {step}/{self.steps}  {detail}"
            self.print_plain(line, now="valid/ppl" in row)


class DataDisplay(Display):
    """The progress of data preparation.

    Attributes:
        bar: takes a description and the share that is done; None where there is no terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar = self._update if self.console.is_terminal else None
        self.task: TaskID | None = None

    def _update(self, description: str, share: float) -> None:
        if self.task is None:
            self.task = self.bars.add_task("", total=100, detail="")
        self.bars.update(self.task, completed=round(100 * share), description=escape(description))


class SweepDisplay(Display):
    """The progress of a launcher's jobs, and of the whole sweep in steps."""

    def __init__(self, launcher: Launcher) -> None:
        super().__init__()
        self.launcher = launcher
        self.jobs = {job.id: job for job in launcher.plan.jobs}
        self.steps = {job.id: job.steps for job in launcher.plan.jobs}
        self.done = {
            number: self.steps[number]
            for number, job in self.jobs.items()
            if launcher.record(job).is_done()
        }
        self.total = self.bars.add_task(
            "all runs", total=sum(self.steps.values()), completed=sum(self.done.values()), detail=""
        )
        self.tasks: dict[int, TaskID] = {}  # by the number of the job, while it is active
        self.elsewhere: set[int] = set()  # jobs that another process runs
        self.finished = {*self.done}
        self._next = 0.0

    def refresh(self, *, now: bool = False) -> None:
        """Read the status of the active jobs, update their bars, and print which have ended.

        With thousands of jobs this takes seconds, and is not done at every call.

        Args:
            now: whether it is done in any case.
        """
        began = time.monotonic()
        if now or began >= self._next:
            self._refresh()
            many = len(self.tasks) >= MANY
            self._next = began + (time.monotonic() - began) / LOOKING if many else 0.0

    def _refresh(self) -> None:
        here = {job.id for attempt in self.launcher.running for job in attempt.jobs}
        elsewhere = {waiting.job.id for waiting in self.launcher.elsewhere}
        self._add(here | elsewhere)
        self._print_new_elsewhere(elsewhere)
        lines = []
        for number in list(self.tasks):
            job = self.jobs[number]
            self._update(job)
            if self.done[number] or len(self.tasks) < MANY:
                lines.append(f"{job.title} {self.done[number]}/{self.steps[number]}")
            if number not in here | elsewhere:
                self._end(job)
        self._update_total(lines)

    def _add(self, active: set[int]) -> None:
        for number in active - self.tasks.keys():
            self.tasks[number] = self.bars.add_task(
                escape(self.jobs[number].title), total=self.steps[number], detail="starting"
            )

    def _print_new_elsewhere(self, elsewhere: set[int]) -> None:
        for number in elsewhere - self.elsewhere:
            run = self.jobs[number].title
            self.print(f"elsewhere  {run}  another process trains it; this sweep waits")
        self.elsewhere = elsewhere

    def _update(self, job: Job) -> None:
        status = last_status(self.launcher.record(job))
        step = int(status.get("step", 0))
        self.done[job.id] = step
        detail = describe_row(status) or "starting"
        if job.id in self.elsewhere:
            detail = f"elsewhere  {detail}"
        # of a queue of thousands only what runs
        shown = status["state"] != "waiting" or len(self.tasks) < MANY
        self.bars.update(self.tasks[job.id], completed=step, detail=detail, visible=shown)

    def _end(self, job: Job) -> None:
        """Remove the bar of a job, and print how it ended."""
        self.bars.remove_task(self.tasks.pop(job.id))
        status = current_status(self.launcher.record(job))
        if status["state"] == "done":
            self.finished.add(job.id)
        reason = in_sweep(job.run, str(status.get("reason") or describe_row(status)))
        self.print(f"{status['state']}  {job.title}  {reason}".rstrip())

    def _update_total(self, lines: list[str]) -> None:
        # jobs that were not started here: another sweep had finished them before their turn
        unfinished = self.jobs.keys() - self.finished - self.tasks.keys()
        for number in unfinished - {job.id for job in self.launcher.waiting}:
            if self.launcher.record(self.jobs[number]).is_done():
                self.finished.add(number)
        detail = f"{len(self.finished)} of {len(self.steps)} done"
        steps = sum(self.done.values())
        self.bars.update(self.total, completed=steps, detail=detail)
        share = steps / sum(self.steps.values())
        self.print_plain(f"{share:.0%}  {detail}  {'  '.join(lines)}")
