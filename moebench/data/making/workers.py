"""Run tasks in several processes, with the same results for any number of processes."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from moebench.errors import DataError, MoebenchError, combine
from moebench.processes import starting

LINE_EVERY = 10.0  # seconds between lines, where there is no bar
POLL_SECONDS = 1.0  # between reports of work that has not ended
MORE_SECONDS = 3.0  # after an error, in which other tasks may report theirs

Result = TypeVar("Result")


class Reporter:
    """Reports how far the work is: to a bar if there is one, else by a line now and then.

    Args:
        say: gets lines.
        bar: gets what is being done, and the share of the whole that is done.
    """

    def __init__(
        self,
        say: Callable[[str], None] | None = None,
        bar: Callable[[str, float], None] | None = None,
    ):
        self.say = say or (lambda _: None)
        self._bar = bar
        self._last_line = time.monotonic()

    def show(self, words: str, share: float) -> None:
        if self._bar:
            self._bar(words, share)
        elif time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            self.say(f"{share:.0%}  {words}")


def in_processes(
    work: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    processes: int,
    on_progress: Callable[[set[int]], None],
    *,
    all_errors: bool = False,
) -> list[Result]:
    """`work(*task)` for each task, in their order.

    Args:
        work: can be pickled, as its arguments and results can.
        processes: at most; with one, or with one task, the work is done in this process.
        on_progress: called with the numbers of the finished tasks, after each and every second.
        all_errors: whether each task's error has a cause of its own. Then the others go on for
            MORE_SECONDS, and all errors are raised together.

    Raises:
        DataError: if a process was killed.
        Exception: any other that `work` raises, once every process has ended.
    """
    count = min(processes, len(tasks))
    errors = _Errors(MORE_SECONDS if all_errors else 0.0)
    if count < 2:
        results = list(_in_this_process(work, tasks, on_progress, errors))
        errors.check()
        return results
    context = get_context("spawn")  # a fork would inherit locks that threads of torch or rich hold
    life, held = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(count, context, _begin_worker, (life,))
    try:
        with starting():
            futures = [executor.submit(work, *task) for task in tasks]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                with errors.kept():
                    future.result()
            if errors.are_enough():
                break
            on_progress({number for number, future in enumerate(futures) if future.done()})
        errors.check()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DataError(
            "a process that prepared the data was killed, perhaps for want of memory; one "
            "process alone takes less: moebench data prepare --jobs 1"
        ) from None
    finally:
        held.close()  # ends the workers at once: what they write is made aside
        executor.shutdown(cancel_futures=True)
        life.close()


class _Errors:
    """The errors of tasks, so that all can be fixed at once.

    Args:
        seconds: after the first error, in which others are awaited.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._errors: list[MoebenchError] = []
        self._first = 0.0  # when it came

    @contextmanager
    def kept(self) -> Iterator[None]:
        try:
            yield
        except MoebenchError as error:
            self._first = self._first or time.monotonic()
            self._errors.append(error)

    def are_enough(self) -> bool:
        """Whether there are some, and no more are awaited."""
        return bool(self._errors) and time.monotonic() - self._first >= self._seconds

    def check(self) -> None:
        if self._errors:
            raise combine(self._errors)


def _in_this_process(
    work: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    on_progress: Callable[[set[int]], None],
    errors: "_Errors",
) -> Iterator[Result]:
    for number, task in enumerate(tasks):
        with errors.kept():
            yield work(*task)
        if errors.are_enough():
            return
        on_progress({*range(number + 1)})


def _begin_worker(life: Connection) -> None:
    """In a worker: end when the parent closes its side of `life`, or is gone."""

    def end() -> None:
        life.poll(None)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    os.dup2(2, 1)  # stdout carries data, and belongs to the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are enough
