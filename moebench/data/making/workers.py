"""Run tasks in several processes, with the same results for any number of processes."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from moebench.errors import DataError
from moebench.processes import starting

LINE_EVERY = 10.0  # seconds between lines, where there is no bar
POLL_SECONDS = 1.0  # between reports of work that has not ended

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
) -> list[Result]:
    """`work(*task)` for each task, in their order.

    Args:
        work: can be pickled, as its arguments and results can.
        processes: at most; with one, or with one task, the work is done in this process.
        on_progress: called with the numbers of the finished tasks, after each and every second.

    Raises:
        DataError: if a process was killed.
        Exception: what `work` raises, once every process has ended.
    """
    count = min(processes, len(tasks))
    if count < 2:
        return list(_in_this_process(work, tasks, on_progress))
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
                future.result()
            on_progress({number for number, future in enumerate(futures) if future.done()})
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


def _in_this_process(
    work: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    on_progress: Callable[[set[int]], None],
) -> Iterator[Result]:
    for number, task in enumerate(tasks):
        yield work(*task)
        on_progress({*range(number + 1)})


def _begin_worker(life: Connection) -> None:
    """In a worker: end when the parent closes its side of `life`, or is gone."""

    def end() -> None:
        life.poll(None)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    os.dup2(2, 1)  # stdout carries data, and belongs to the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are enough
