"""The engine `submitit`: jobs of SLURM by submitit's AutoExecutor, as arrays that are requeued."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from moebench.disk import is_name, read_json, reason, write_json
from moebench.errors import ConfigError, RecordError, remedy
from moebench.lease import hold
from moebench.machine import usable_cores
from moebench.plans import Job, Plan
from moebench.records import cannot_write
from moebench.registry import plugins
from moebench.study.attend import Attendant, Outcome, describe_worker
from moebench.study.engines import Batch, Engine, Placed, Worker, missing_extra
from moebench.study.engines.remote import Remote
from moebench.study.engines.slurm import CANCELLED, LOST, Queue

FOLDER = "submitit"  # beside a plan: what submitit writes, and which jobs were handed in
HANDED_IN = "jobs.json"
MOST_IN_ARRAY = 1000  # elements: SLURM's MaxArraySize is 1001 by default
TO_CONSTRUCT = ("max_num_timeout", "python")  # options that are not update_parameters'


class Submitit(Engine):
    """Jobs of SLURM; with `cluster=local` or `debug`, processes of this machine.

    Args:
        options: of `submitit.AutoExecutor`, by its names.
        runs_dir: a directory that all workers share.
        timeout: seconds without a completed step after which a run counts as hung; None: never.

    Raises:
        ConfigError: without submitit, and for options that it does not have.
    """

    def __init__(
        self, options: Mapping[str, Any], runs_dir: Path, timeout: float | None = None
    ) -> None:
        try:
            submitit = import_module("submitit")
        except ImportError:
            raise missing_extra("submitit") from None
        logging.getLogger("submitit").setLevel(logging.ERROR)
        self._submitit = submitit
        self._runs_dir, self._timeout = runs_dir.resolve(), timeout
        self._options = dict(options)
        self._cluster = str(self._options.pop("cluster", "slurm"))
        self._check_options()
        self._name, self._folder, self._plan_path = "", Path(), Path()
        self._queue = Queue() if self._cluster == "slurm" else None
        self.stays = self._cluster != "debug"
        self.poll = 2.0 if self._queue else 0.5
        # SLURM queues; submitit starts all jobs of a machine of its own at once
        self.room = sys.maxsize if self._queue else usable_cores()
        self._found: Worker | None = None

    def _check_options(self) -> None:
        clusters = ("slurm", "local", "debug")
        if self._cluster not in clusters:
            raise ConfigError(
                f"--engine cluster={self._cluster}: must be one of {', '.join(clusters)}"
            )
        known = {*self._submitit.AutoExecutor._typed_parameters(), *_constructing()} | {
            f"slurm_{name}" for name in self._submitit.SlurmExecutor._valid_parameters()
        }
        for key in self._options:
            if key not in known:
                raise ConfigError(
                    f"--engine {key}={self._options[key]}: submitit has no such option; "
                    + remedy(key, sorted(known))
                )
        try:
            executor = self._submitit.AutoExecutor("unused", cluster="debug")
            executor.update_parameters(**self._split()[1])
        except (AssertionError, NameError, ValueError, TypeError) as error:
            raise ConfigError(f"--engine: {reason(error)}") from None

    def _split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options with which an executor is made, and those that it is given then."""
        making = {key: self._options[key] for key in self._options if key in _constructing()}
        return making, {key: self._options[key] for key in self._options if key not in making}

    def _executor(self, folder: Path, name: str) -> Any:
        making, given = self._split()
        try:
            executor = self._submitit.AutoExecutor(folder, cluster=self._cluster, **making)
            executor.update_parameters(**{"name": name, **given})
        except RuntimeError:
            raise ConfigError(
                "--launcher submitit: this machine has no srun; start the sweep where SLURM is, "
                "or use --engine cluster=local"
            ) from None
        return executor

    def worker(self) -> Worker:
        """What its workers have; a job asks where they have a GPU, and the answer is kept."""
        if self._found is None:
            wanted = {**self._options, "cluster": self._cluster}
            has_gpu = any("gpu" in f"{key}={value}" for key, value in wanted.items() if value)
            self._found = self._ask(wanted) if has_gpu else Worker("fp32", 0)
        return self._found

    def _ask(self, wanted: Mapping[str, Any]) -> Worker:
        path = self._runs_dir / ".workers" / "submitit.json"
        known = _answers(path)
        key = " ".join(f"{name}={value}" for name, value in sorted(wanted.items()))
        if key not in known:
            executor = self._executor(path.parent, "moebench-worker")
            [job] = self._submit(executor, [describe_worker])
            print(f"asking a worker what it has (job {job.job_id})", file=sys.stderr)
            while self._queue and not job.paths.result_pickle.exists():
                time.sleep(self.poll)
                state = self._queue.ended(job.job_id)  # first: the answer is there before the end
                if state and not job.paths.result_pickle.exists():
                    raise ConfigError(
                        f"--launcher submitit: the job that asks what a worker has is {state}; see "
                        f"{job.paths.stderr}, or {self._suspects()}"
                    )
            if job.exception() is not None:
                raise ConfigError(
                    f"--launcher submitit: the job that asks what a worker has failed; see "
                    f"{job.paths.stderr}, or {self._suspects()}"
                )
            known[key] = job.result()
            write_json(path, {**_answers(path), key: known[key]})
        return Worker(*known[key])

    def open(self, plan: Plan, runs_dir: Path) -> None:
        self._plan_path = plan.path(self._runs_dir)
        self._folder = self._plan_path.parent / FOLDER
        self._name = f"moebench-{plan.slug}"

    def start(self, batches: Sequence[Batch]) -> list[Placed]:
        executor = self._executor(self._folder, self._name)
        parts = range(0, len(batches), MOST_IN_ARRAY)
        return [
            placed
            for start in parts
            for placed in self._hand_in(executor, batches[start : start + MOST_IN_ARRAY])
        ]

    def _hand_in(self, executor: Any, batches: Sequence[Batch]) -> list["Submitted"]:
        work = [
            Requeued(str(self._plan_path), [job.id for job in batch], self._timeout, plugins())
            for batch in batches
        ]
        jobs = self._submit(executor, work)
        placed = [
            Submitted(job, self._queue, self._runs_dir, batch)
            for job, batch in zip(jobs, batches, strict=True)
        ]
        if self._queue:
            self._note(placed)
        return placed

    def _submit(self, executor: Any, work: Sequence[Callable[[], object]]) -> list[Any]:
        """Hand in an array. Raises ConfigError for what SLURM refuses, in SLURM's words."""
        try:
            with executor.batch():
                return [executor.submit(each) for each in work]
        except OSError as error:
            raise cannot_write(executor.folder, error) from None
        except (self._submitit.core.utils.FailedJobError, RuntimeError) as error:
            lines = [line for line in str(error).splitlines() if "error:" in line]
            why = lines[-1] if lines else reason(error)
            raise ConfigError(f"--launcher submitit: {why.strip()}; {self._suspects()}") from None

    def _suspects(self) -> str:
        """The options that SLURM was given, which it may not have."""
        given = " ".join(f"{key}={value}" for key, value in self._options.items())
        return f"correct what --engine or the preset sets ({given or 'nothing'})"

    def running(self, jobs: Sequence[Job]) -> list[Placed]:
        if self._queue is None:
            return []
        wanted, found = {job.id: job for job in jobs}, []
        for entry in reversed(handed_in(self._folder)):
            if all(number in wanted for number in entry["ids"]):
                batch = tuple(wanted.pop(number) for number in entry["ids"])
                before = {job.id: was for job, was in zip(batch, entry["before"], strict=True)}
                job = self._submitit.SlurmJob(self._folder, entry["job"])
                placed = Submitted(job, self._queue, self._runs_dir, batch, before)
                if placed.word() is None:
                    found.append(placed)
        return found

    def _note(self, placed: Sequence["Submitted"]) -> None:
        """Write down which jobs train which runs, for a sweep that comes back."""
        new = [
            {
                "job": each.job.job_id,
                "ids": [job.id for job in each.jobs],
                "before": [dict(each.before[job.id]) for job in each.jobs],
            }
            for each in placed
        ]
        path = self._folder / HANDED_IN
        try:
            with hold(path.with_name(f"{HANDED_IN}.lock"), wait=True):
                write_json(path, {"jobs": [*handed_in(self._folder), *new]})
        except OSError as error:
            raise cannot_write(self._folder, error) from None


class Requeued(Attendant):
    """A batch that submitit hands in again when SLURM preempts it or its time is over."""

    def __call__(self) -> Outcome:
        outcome = super().__call__()
        if outcome[0] in (75, 130):  # by a signal: SLURM knows whether the job comes back
            raise SystemExit(outcome[0])
        return outcome

    def checkpoint(self) -> Any:
        """What submitit calls on its signal, before it hands in the result again."""
        self.stop()
        return import_module("submitit").helpers.DelayedSubmission(self)


class Submitted(Remote):
    """A batch as a job of submitit.

    Args:
        queue: SLURM's; None for another cluster.
    """

    def __init__(
        self,
        job: Any,
        queue: Queue | None,
        runs_dir: Path,
        jobs: Batch,
        before: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(runs_dir, jobs, before)
        self.job, self._queue = job, queue
        self._state = ""
        if queue is not None:
            queue.add(job.job_id)

    def word(self) -> str | None:
        if self._queue is None:
            return self._said() if self.job.done() else None
        self._state = self._queue.ended(self.job.job_id)
        if self.job.paths.result_pickle.exists():
            return self._said()
        if not self._state:
            return None
        unseen = not self.job.paths.stdout.exists() and not self._state.startswith(CANCELLED)
        hint = f"; it wrote nothing, so do the workers see {self._runs_dir}?" if unseen else ""
        return f"SLURM job {self.job.job_id} is {self._state}{hint}"

    def _said(self) -> str:
        """ "" for a job that returned, or the last line of its error."""
        error = self.job.exception()
        if error is None:
            _, self.reasons = self.job.result()
            return ""
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        errors = [line for line in lines if "Error" in line.partition(":")[0]]
        return (errors or lines or [""])[-1].strip()

    def goes_again(self, job: Job) -> bool:
        """After a preemption, its time or a dead node, if it has trained since it was handed in."""
        return self._state.split(" ")[0] in LOST and self.moved(job)

    def cancel(self, *, force: bool) -> None:
        with suppress(Exception):  # it has just ended
            self.job.cancel(check=False)


def _answers(path: Path) -> dict[str, Worker]:
    """What workers have said that they have; those that cannot be read are asked again."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return {key: Worker(*said) for key, said in content.items() if _is_answer(said)}


def _is_answer(said: Any) -> bool:
    return isinstance(said, list) and list(map(type, said)) == [str, int]


def handed_in(folder: Path) -> list[dict[str, Any]]:
    """The jobs that sweeps have handed in: `job`, the `ids` of a batch, and their status `before`.

    Raises RecordError for a file that is damaged.
    """
    path = folder / HANDED_IN
    if not path.exists():
        return []
    try:
        entries = read_json(path).get("jobs")
    except (OSError, ValueError):
        entries = None
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise RecordError(f"{path}: is not a list of jobs; delete it if none is queued")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether an entry names a job of SLURM, not a path or an option, and what it trains."""
    if not isinstance(entry, dict):
        return False
    job, ids, before = (entry.get(key) for key in ("job", "ids", "before"))
    return (
        isinstance(job, str)
        and is_name(job)
        and job.replace("_", "").isdecimal()
        and isinstance(ids, list)
        and isinstance(before, list)
        and len(ids) == len(before)
        and all(type(number) is int for number in ids)
        and all(isinstance(status, dict) for status in before)
    )


def _constructing() -> Iterator[str]:
    return (f"slurm_{name}" for name in TO_CONSTRUCT)
