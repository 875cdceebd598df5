"""Arms x seeds become a plan, and the plan's jobs become records, each in a process of its own.

The plan is a file: `runs/studies/<name>-<hash>/plan.json`, a list of runs. A job needs only that
file and its id, so any launcher can start it: `python -m moebench.study PLAN ID [PARENT]`, which
stops when the process PARENT is gone. A second sweep over the same plan does only what is not done.
Planning imports no torch.
"""

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moebench.config.compose import Composer, from_dict, to_dict
from moebench.config.identity import arm_hash, label, run_name
from moebench.config.schema import DataConfig, ExperimentConfig
from moebench.data.batches import check_epochs
from moebench.data.corpus import Corpus, prepare
from moebench.errors import ConfigError, MoebenchError, RecordError
from moebench.records import SCHEMA_VERSION, Record, printable, write_json

DEFAULT_STUDY = "scope"
POLL = 0.2  # seconds between looks at the processes
PATIENCE = 10.0  # seconds that processes get to stop in


@dataclass(frozen=True)
class Job:
    """One run of a plan."""

    id: int
    run: str
    arm: str
    arm_hash: str
    seed: int
    overrides: tuple[str, ...]
    config: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """The runs of a study, in the order in which they start: seed by seed, so that pairs fill."""

    name: str
    question: str
    size: str
    baseline: str
    primary: str
    jobs: tuple[Job, ...]

    @property
    def slug(self) -> str:
        """`<name>-<hash>`; the hash covers the runs and what they are compared for."""
        key = json.dumps([self.baseline, self.primary, sorted(job.run for job in self.jobs)])
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def path(self, runs_dir: Path) -> Path:
        return runs_dir / "studies" / self.slug / "plan.json"

    def write(self, runs_dir: Path) -> Path:
        """Keep the plan among the runs; returns its path."""
        content = {key: value for key, value in asdict(self).items() if key != "jobs"}
        runs = [asdict(job) for job in self.jobs]
        path = self.path(runs_dir)
        try:
            write_json(path, {"schema_version": SCHEMA_VERSION, **content, "runs": runs})
        except OSError as error:
            raise RecordError(
                f"{runs_dir}: cannot be written ({error.strerror}); "
                "name another directory with --runs-dir"
            ) from None
        return path


def read_plan(path: Path) -> Plan:
    """The plan in a file that `Plan.write` made."""
    try:
        content = json.loads(path.read_bytes())
        jobs = [Job(**{**run, "overrides": tuple(run["overrides"])}) for run in content["runs"]]
        known = ("name", "question", "size", "baseline", "primary")
        return Plan(**{key: content[key] for key in known}, jobs=tuple(jobs))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: is not a plan ({type(error).__name__}: {error})") from None


def make_plan(
    composer: Composer, overrides: Sequence[str], *, progress: Any = None
) -> tuple[Plan, list[Corpus]]:
    """Compose and validate every run that the typed overrides stand for; none has started yet.

    With a sweep among the overrides and no `study=`, the runs are exactly that grid; else those of
    the study, `scope` if none is named: each of its arms with the overrides of the study, of its
    size and those typed, a later one winning over an earlier one. All are in Hydra's sweep grammar,
    so that `seed=0,1,2` gives every arm three seeds.

    Args:
        overrides: as typed, `study=` and `study.*` included.
        progress: called with a line while data is prepared.

    Returns:
        The plan, and the corpora of its runs (one, unless data differs between arms).

    Raises:
        ConfigError: for the first override or run that cannot work.
    """
    own = [each for each in overrides if not _is_study(each)]
    about = [each for each in overrides if _is_study(each)]
    names = [each.removeprefix("study=") for each in about if each.startswith("study=")]
    options = [each for each in about if not each.startswith("study=")]
    if len(names) > 1:
        raise ConfigError(f"study: is set twice ({' and '.join(names)}); keep one")
    if any(composer.is_sweep(each) for each in own) and not about:
        study, cells = None, composer.expand(own)
    else:
        study = composer.study(names[0] if names else DEFAULT_STUDY, options)
        shared = (*study.overrides, *study.sizes.get(study.size, ()))
        arms = [job for arm in study.arms for job in composer.expand(shlex.split(arm))]
        varied = {_key(each) for arm in arms for each in arm}
        for each in own:
            key = next((key for key in varied if f"{_key(each)}.".startswith(f"{key}.")), None)
            if key is not None:
                raise ConfigError(
                    f"{each}: study={study.name} varies {key} itself; leave it out, or sweep over "
                    "it without study="
                )
        composer.expand(own)  # so that an error names what was typed
        cells = [
            cell
            for arm in arms
            for cell in composer.expand(_merge(composer.groups, shared, own, arm))
        ]
    configs = [(cell, composer.compose(cell)) for cell in cells]
    configs.sort(key=lambda pair: pair[1].seed)  # so that pairs fill one after another
    corpora = _corpora([config for _, config in configs], progress)
    jobs: dict[str, Job] = {}
    for cell, config in configs:
        corpus = corpora[_data_key(config.data)]
        check_epochs(corpus, config)
        run = run_name(config, corpus.content_hash)
        if run not in jobs:  # two ways of writing one treatment are one run
            jobs[run] = Job(
                id=len(jobs),
                run=run,
                arm=label(config),
                arm_hash=arm_hash(config, corpus.content_hash),
                seed=config.seed,
                overrides=tuple(cell),
                config=to_dict(config),
            )
    labels = [job.arm for job in jobs.values()]
    baseline = study.baseline if study else ("micro" if "micro" in labels else labels[0])
    if baseline not in labels:
        raise ConfigError(
            f"study.baseline={baseline}: is the label of no arm; choose one of "
            f"{', '.join(dict.fromkeys(labels))}"
        )
    plan = Plan(
        name=study.name if study else "sweep",
        question=study.question if study else "",
        size=study.size if study else "",
        baseline=baseline,
        primary=study.primary if study else "valid/nats",
        jobs=tuple(jobs.values()),
    )
    return plan, list(corpora.values())


def _corpora(configs: Sequence[ExperimentConfig], progress: Any) -> dict[str, Corpus]:
    found: dict[str, Corpus] = {}
    for config in configs:
        key = _data_key(config.data)
        if key not in found:
            found[key] = prepare(config.data, progress=progress)
    return found


def _data_key(data: DataConfig) -> str:
    """What decides which corpus it is, as far as the config tells."""
    apart = ("homogeneity", "sampling", "temperature", "weights", "mask_documents", "max_epochs")
    return json.dumps({key: value for key, value in asdict(data).items() if key not in apart})


def _is_study(override: str) -> bool:
    return override.startswith(("study=", "study."))


def _key(override: str) -> str:
    return override.split("=", 1)[0]


def _merge(groups: Collection[str], *layers: Iterable[str]) -> list[str]:
    """Overrides of which a later layer wins over an earlier one, its presets over their keys."""
    kept: dict[str, str] = {}
    for layer in layers:
        new = {_key(each): each for each in layer}
        kept = {
            key: each for key, each in kept.items() if key.split(".")[0] not in {*new} & {*groups}
        }
        kept |= new
    return list(kept.values())


def state_of(record: Record) -> dict[str, Any]:
    """The status of a run, `waiting` if it has none that can be read."""
    try:
        return record.status()
    except RecordError:
        return {"state": "waiting", "step": 0}


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (OSError, TypeError, ValueError, OverflowError):
        return False
    return True


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: Path


class LocalLauncher:
    """Runs the jobs of a plan as one-thread processes on this machine, `workers` at a time.

    Iterate over `run()`; it yields after each look at the processes, so that the caller can draw.
    Closing it stops them. A job that fails, in whatever way, leaves the others.

    Attributes:
        failed: the jobs that did not finish, with the reason of each.
    """

    def __init__(self, plan: Plan, runs_dir: Path, workers: int) -> None:
        self.plan = plan
        self.runs_dir = runs_dir
        self.workers = workers
        self.path = plan.path(runs_dir)
        self.waiting = [job for job in plan.jobs if not self.record(job).is_done()]
        self.running: list[_Running] = []
        self.failed: list[tuple[Job, str]] = []

    def record(self, job: Job) -> Record:
        return Record(self.runs_dir / job.run)

    def run(self) -> Generator[None]:
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.workers:
                    self.running.append(self._start(self.waiting.pop(0)))
                yield
                time.sleep(POLL)
                for each in list(self.running):
                    if each.process.poll() is not None:
                        self.running.remove(each)
                        self._finish(each)
            yield
        finally:
            self._end_all()

    def _start(self, job: Job) -> _Running:
        log = self.path.parent / "logs" / f"{job.run}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # The same code as here: what lies in the working directory counts only if it counts here.
        python = [sys.executable, *(["-P"] if os.getcwd() not in sys.path[:1] else [])]
        words = [str(self.path.resolve()), str(job.id), str(os.getpid())]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*python, "-m", "moebench.study", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
                # A group of its own: Ctrl-C reaches the sweep alone, which then ends its jobs.
                start_new_session=True,
            )
        return _Running(job, process, log)

    def _finish(self, each: _Running) -> None:
        """Note a job whose process ended without finishing it, and why."""
        if not self.record(each.job).is_done():
            how = _how_it_ended(each.process.returncode, each.log)
            self.failed.append((each.job, self._last_word(each, "failed", how)))

    def _last_word(self, each: _Running, state: str, reason: str) -> str:
        """Why an ended process did not finish: as it said itself, else `reason`, put on record."""
        record = self.record(each.job)
        status = state_of(record)
        speaker = status.get("pid")
        if speaker == each.process.pid and status["state"] in ("failed", "stopped"):
            return str(status.get("reason"))
        elsewhere = status["state"] == "running" and speaker != each.process.pid
        if record.exists() and not (elsewhere and _is_alive(speaker)):
            steps = each.job.config["train"]["steps"]
            record.set_status(state, step=status["step"], steps=steps, reason=reason)
        return reason

    def _end_all(self) -> None:
        """Ask every process to stop at its next step, and end those that do not in time."""
        for each in self.running:
            each.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for each in self.running:
            try:
                each.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
            if not self.record(each.job).is_done():
                self._last_word(each, "stopped", "ended with the sweep; sweep again to go on")


def _how_it_ended(code: int, log: Path) -> str:
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)})"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return printable(lines[-1].removeprefix("error: ")) if lines else f"exit code {code}"


def run_job(plan_path: Path, number: int) -> int:
    """Run one job of a plan in this process; returns its exit code.

    A record that is there and unfinished is continued, one that is done is left as it is.
    """
    try:
        plan = read_plan(plan_path)
        job = plan.jobs[number]
        config = from_dict(job.config)
        if config.run.threads is None:
            config = replace(config, run=replace(config.run, threads=1))
        corpus = prepare(config.data)
        if run_name(config, corpus.content_hash) != job.run:
            raise RecordError(f"{job.run}: the data has changed since the plan; sweep again")
        from moebench.experiment import run_experiment  # torch, only here

        run_experiment(config, corpus, plan_path.parents[2], resume=True)
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _end_with(parent: int) -> None:
    """Stop this process when the one that started it is gone, whatever killed it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    path, number, *parent = sys.argv[1:]
    if parent:
        _end_with(int(parent[0]))
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run_job(Path(path), int(number)))
    sys.exit(130)
