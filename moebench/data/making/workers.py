"""Work in several processes: the same results, in the same order, whatever their number.

The processes are Python's own subprocesses and not multiprocessing's: those would run the user's
script again, or inherit locks that a thread of torch or rich holds.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import IO, Any, TypeVar

from moebench.errors import DataError

LINE_EVERY = 10.0  # seconds between lines, where there is no bar
PATIENCE = 1.0  # seconds between two looks at work that has not ended

Result = TypeVar("Result")


class Teller:
    """Says how far the work is: to a bar if there is one, else by a line now and then.

    Args:
        say: gets lines.
        bar: gets what is being done, and the share of the whole that is.
    """

    def __init__(
        self,
        say: Callable[[str], None] | None = None,
        bar: Callable[[str, float], None] | None = None,
    ):
        self.say = say or (lambda _: None)
        self._bar = bar
        self._told = time.monotonic()

    def show(self, words: str, share: float) -> None:
        if self._bar:
            self._bar(words, share)
        elif time.monotonic() - self._told > LINE_EVERY:
            self._told = time.monotonic()
            self.say(f"{share:.0%}  {words}")


def cores() -> int:
    """How many processes can work at a time here."""
    return len(os.sched_getaffinity(0))


def in_processes(
    work: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    processes: int,
    look: Callable[[set[int]], None],
) -> list[Result]:
    """`work(*task)` for each task, in their order.

    Args:
        work: can be pickled, as its arguments and results can.
        processes: at most; with one, or with one task, the work is done in this process.
        look: called with the numbers of the tasks that are done, after each and every second.

    Raises what `work` raises, once every process has been stopped.
    """
    count = min(processes, len(tasks))
    if count < 2:
        return list(_here(work, tasks, look))
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    threads = ThreadPoolExecutor(count)

    def do(task: tuple[Any, ...]) -> Result:
        worker = idle.get()
        try:
            return worker.do(work, task)
        finally:
            idle.put(worker)

    try:
        for _ in range(count):
            workers.append(_Worker())
            idle.put(workers[-1])
        futures: list[Future[Result]] = [threads.submit(do, task) for task in tasks]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, PATIENCE, FIRST_COMPLETED)
            for each in done:
                each.result()
            look({number for number, each in enumerate(futures) if each.done()})
        return [each.result() for each in futures]
    finally:
        for each in workers:
            each.stop()
        threads.shutdown(cancel_futures=True)


def _here(
    work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], look: Callable[[set[int]], None]
) -> Iterator[Result]:
    for number, task in enumerate(tasks):
        yield work(*task)
        look({*range(number + 1)})


class _Worker:
    """A process that does one piece of work after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's to handle
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TOKENIZERS_PARALLELISM": "false",  # the processes are enough
            },
        )

    def do(self, work: Callable[..., Result], task: tuple[Any, ...]) -> Result:
        assert self._process.stdin
        assert self._process.stdout
        try:
            pickle.dump((work, task), self._process.stdin)
            self._process.stdin.flush()
            value, error = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise DataError(
                "a process that prepared the data was killed, perhaps for want of memory; one "
                "process alone takes less: moebench data prepare --jobs 1"
            ) from None
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """End the process at once: what it writes is made aside."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(OSError):  # what was still to be written has no reader any more
                pipe.close()
        self._process.wait()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """In a worker: do what is asked for until the parent is gone, and then end at once."""
    asked: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                asked.put(pickle.load(requests))
        except BaseException:
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        work, task = asked.get()
        try:
            answer = work(*task), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    given = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not be taken for an answer
    _serve(sys.stdin.buffer, given)
