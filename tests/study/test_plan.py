"""Plans, and the processes that carry them out: none takes another one down."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.errors import ConfigError, DataError, RecordError
from moebench.records import Record
from moebench.study import (
    Job,
    LocalLauncher,
    Plan,
    make_plan,
    read_plan,
    state_of,
)
from moebench.study.__main__ import run_job

Small = Callable[..., list[str]]
STUDY = """\
question: Which?
overrides: [loss.balance=0.5, optim=adamw, optim.lr=0.25, 'seed=0,1']
arms: [scope=micro, scope=global balance_bsz=8, scope=global, "scope=none loss.z=0.1,0.2"]
baseline: micro
size: short
sizes: {short: [train.steps=6], long: [train.steps=7, optim.lr=0.125]}
"""


@pytest.fixture
def small(text_folder: Path) -> Small:
    """A small run's overrides, some more after them."""

    def made(*more: str) -> list[str]:
        return [
            *("model=smoke", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
            *("data=folder", f"data.path={text_folder}", *more),
        ]

    return made


@pytest.fixture
def composer(tmp_path: Path) -> Composer:
    """One with a study of its own."""
    path = tmp_path / "presets" / "study" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(STUDY)
    (path.parent.parent / "optim").mkdir()
    (path.parent.parent / "optim" / "slow.yaml").write_text("lr: 0.001\n")
    return Composer(path.parent.parent)


def plan_of(composer: Composer, overrides: list[str]) -> Plan:
    return make_plan(composer, overrides)[0]


def arms(plan: Plan) -> list[str]:
    return list(dict.fromkeys(job.arm for job in plan.jobs))


# Planning


def test_a_sweep_is_exactly_its_grid(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("scope=micro,global", "seed=2,0,1", "train.steps=6"))
    assert [(job.arm, job.seed) for job in plan.jobs] == [
        (arm, seed) for seed in (0, 1, 2) for arm in ("micro", "global")
    ]
    assert [job.id for job in plan.jobs] == list(range(6))
    assert (plan.name, plan.baseline, plan.primary) == ("sweep", "micro", "valid/nats")
    assert len({job.arm_hash for job in plan.jobs}) == 2
    assert len({job.run for job in plan.jobs}) == 6


def test_a_sweep_of_one_value_is_a_sweep(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("scope=choice(none)", "train.steps=6"))
    assert (plan.name, arms(plan)) == ("sweep", ["none"])


def test_one_treatment_under_two_names_is_one_run(composer: Composer, small: Small) -> None:
    overrides = small("scope=micro,global", "balance_bsz=4", "train.steps=6", "optim.lr=1e-3,0.001")
    assert arms(plan_of(composer, overrides)) == ["micro"]
    assert len(plan_of(composer, overrides).jobs) == 1


def test_a_study_is_its_arms_with_its_overrides_and_size(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine"))
    assert (plan.name, plan.question, plan.size, plan.baseline) == (
        *("mine", "Which?", "short", "micro"),
    )
    assert arms(plan) == ["micro", "global", "none"]
    assert len(plan.jobs) == 2 * 4, "global by its size and by default is one arm"
    assert {job.config["loss"]["balance"] for job in plan.jobs} == {0.5}
    assert {job.config["train"]["steps"] for job in plan.jobs} == {6}
    assert {job.config["optim"]["lr"] for job in plan.jobs} == {0.25}
    long = plan_of(composer, small("study=mine", "study.size=long"))
    assert {job.config["train"]["steps"] for job in long.jobs} == {7}
    assert {job.config["optim"]["lr"] for job in long.jobs} == {0.125}


def test_what_is_typed_wins_over_a_study(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine", "seed=7", "train.steps=9", "optim=slow"))
    assert {job.seed for job in plan.jobs} == {7}
    assert {job.config["train"]["steps"] for job in plan.jobs} == {9}
    assert {job.config["optim"]["lr"] for job in plan.jobs} == {0.001}, "a preset over its keys"


def test_a_sweep_is_crossed_with_a_study(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine", "seed=0", "train.steps=6,8"))
    assert len(plan.jobs) == 2 * 4


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["scope=none"], "scope=none: study=mine varies scope itself; leave it out, or sweep over"),
        (["loss.z=1"], "loss.z=1: study=mine varies loss.z itself; leave it out"),
        (["study=mine"], "study: is set twice (mine and mine); keep one"),
        (["study=demo"], "study: is set twice (mine and demo); keep one"),
        (["study.size=huge"], "study.size=huge: study=mine has no such size; it has short, long"),
        (["study.baseline=x"], "study.baseline=x: is the label of no arm; choose one of micro, "),
        (["study.name=x"], "study.name=x: no such key"),
        (["study.sizes.short=[]"], "study.sizes.short=[]: no such key"),
        (["study.arms=[]"], "study.arms=[]: is empty; give at least one"),
        (["study.arms=[scope=micr]"], "study.arms=[scope=micr]: does not parse"),
        (["study.arms=['scope=micr']"], "scope=micr: no such scope; did you mean micro?"),
        (["modle=tiny"], "modle=tiny: no such key; did you mean model?"),
        (["loss.balance=0"], "study.baseline=micro: is the label of no arm; choose one of none"),
        (["seed=0", "seed=1"], "seed: is set twice (seed=0 and seed=1); keep one"),
    ],
)
def test_what_does_not_go_with_a_study_is_one_line(
    composer: Composer, small: Small, typed: list[str], error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(composer, small("study=mine", *typed))
    assert str(caught.value).startswith(error)


def test_an_arm_of_a_study_that_sets_a_group_wins_over_no_typed_key(
    composer: Composer, small: Small
) -> None:
    overrides = small("study=mine", "study.arms=['loss=paper','loss=balance']", "seed=0")
    with pytest.raises(ConfigError, match=r"^loss\.z=1: study=mine varies loss itself"):
        make_plan(composer, [*overrides, "loss.z=1"])


def test_a_plan_whose_data_do_not_suffice_is_refused(composer: Composer, small: Small) -> None:
    with pytest.raises(DataError, match=r"data\.max_epochs=4: train\.steps=100000 would read"):
        make_plan(composer, small("seed=0,1", "train.steps=100000"))


def test_a_plan_is_named_by_its_runs_and_what_they_are_for(
    composer: Composer, small: Small
) -> None:
    plan = plan_of(composer, small("seed=0,1", "train.steps=6"))
    again = plan_of(composer, small("train.steps=6", "seed=1,0", "scope=global"))
    assert plan.slug == again.slug
    assert plan.slug.startswith("sweep-")
    assert plan_of(composer, small("seed=0,2", "train.steps=6")).slug != plan.slug
    base = plan_of(composer, small("study=mine", "study.baseline=none"))
    assert base.slug != plan_of(composer, small("study=mine")).slug


def test_a_plan_is_read_as_it_was_written(composer: Composer, small: Small, tmp_path: Path) -> None:
    plan = plan_of(composer, small("study=mine"))
    path = plan.write(tmp_path / "runs")
    assert path == tmp_path / "runs" / "studies" / plan.slug / "plan.json"
    assert read_plan(path) == plan


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"runs": [{}]}', '{"runs": 1}', "\x00"])
def test_a_broken_plan_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=f"^{path}: is not a plan"):
        read_plan(path)


def test_planning_needs_no_torch(small: Small) -> None:
    code = (
        "import sys; from moebench.config.compose import Composer\n"
        "from moebench.study import make_plan\n"
        "make_plan(Composer(), sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    words = small("seed=0,1", "train.steps=6")
    subprocess.run([sys.executable, "-c", code, *words], check=True)


# Carrying out


class Script:
    """Stands for `moebench.study` in a launcher's processes: does what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, code: str) -> None:
        package = self.folder / "fake" / "moebench"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "study.py").write_text(
            "import json, os, signal, sys, time\nfrom pathlib import Path\n"
            "plan = Path(sys.argv[1]); number = int(sys.argv[2])\n"
            "run = plan.parents[2] / json.loads(plan.read_text())['runs'][number]['run']\n"
            "def say(state, **more):\n"
            "    run.mkdir(exist_ok=True); (run / 'config.yaml').write_text('a: 1')\n"
            "    more = {'step': 1, 'pid': os.getpid(), **more}\n"
            "    (run / 'status.json').write_text(json.dumps({'state': state, **more}))\n" + code
        )


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.chdir(tmp_path)
    return Script(tmp_path)


def a_plan(runs: int) -> Plan:
    config = {"train": {"steps": 6}}
    jobs = (Job(n, f"arm-s{n}-0", "arm", "0", n, (f"seed={n}",), config) for n in range(runs))
    return Plan("sweep", "", "", "arm", "valid/nats", tuple(jobs))


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., LocalLauncher]:
    def made(plan: Plan, workers: int = 2) -> LocalLauncher:
        plan.write(tmp_path / "runs")
        launcher = LocalLauncher(plan, tmp_path / "runs", workers)
        for _ in launcher.run():
            assert len(launcher.running) <= workers
        return launcher

    return made


Launch = Callable[..., LocalLauncher]
DONE = "say('done'); (run / 'summary.json').write_text('{}')\n"


def test_every_job_runs_once_and_in_order(script: Script, launch: Launch, tmp_path: Path) -> None:
    script.write(DONE + "open(plan.parents[3] / 'order', 'a').write(f'{number} ')")
    launcher = launch(a_plan(5), 1)
    assert (tmp_path / "order").read_text() == "0 1 2 3 4 "
    assert launcher.failed == launcher.running == launcher.waiting == []
    assert launch(a_plan(5), 1).failed == []
    assert (tmp_path / "order").read_text() == "0 1 2 3 4 ", "what is done is left as it is"


@pytest.mark.parametrize(
    ("end", "reason", "state"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9 (Killed)", "failed"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", "killed by signal 35 (", "failed"),
        ("os.abort()", "killed by signal 6 (Aborted)", "failed"),
        ("say('running'); os.kill(os.getpid(), 9)", "killed by signal 9 (Killed)", "failed"),
        ("raise SystemError('in C')", "SystemError: in C", "failed"),
        ("print('error: a: b; c'); sys.exit(2)", "a: b; c", "failed"),
        ("sys.exit(5)", "exit code 5", "failed"),
        ("pass", "exit code 0", "failed"),
        ("print('\\x1b[31m', flush=True); os._exit(1)", "�[31m", "failed"),
        ("say('failed', reason='step 3: nan')", "step 3: nan", "failed"),
        ("say('stopped', reason='by SIGTERM')", "by SIGTERM", "stopped"),
        ("say('failed', pid=1, reason='earlier'); os.kill(os.getpid(), 9)", "killed by", "failed"),
    ],
)
def test_a_job_that_ends_in_whatever_way_leaves_the_others(
    script: Script, launch: Launch, end: str, reason: str, state: str
) -> None:
    script.write(f"if number == 1:\n    say('waiting')\n    {end}\nelse:\n    {DONE}")
    launcher = launch(a_plan(4))
    [(job, said)] = launcher.failed
    assert job.id == 1
    assert said.startswith(reason)
    status = launcher.record(job).status()
    assert (status["state"], status["reason"]) == (state, said)
    assert all(launcher.record(each).is_done() for each in launcher.plan.jobs if each.id != 1)


def test_a_job_that_never_began_leaves_no_record(script: Script, launch: Launch) -> None:
    script.write("os.kill(os.getpid(), signal.SIGKILL)")
    launcher = launch(a_plan(1))
    assert launcher.failed[0][1] == "killed by signal 9 (Killed)"
    assert not launcher.record(launcher.plan.jobs[0]).path.exists()


def test_the_status_of_a_run_that_another_process_trains_is_left_alone(
    script: Script, launch: Launch
) -> None:
    script.write(f"say('running', pid={os.getpid()}); print('error: locked'); sys.exit(2)")
    launcher = launch(a_plan(1))
    assert launcher.failed[0][1] == "locked"
    status = launcher.record(launcher.plan.jobs[0]).status()
    assert (status["state"], status["pid"]) == ("running", os.getpid())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def begun(launcher: LocalLauncher, looks: Iterator[None]) -> list[int]:
    """The process ids of two jobs that run."""
    records = [launcher.record(job) for job in launcher.plan.jobs[:2]]
    while not all(state_of(record)["state"] == "running" for record in records):
        next(looks)
    return [record.status()["pid"] for record in records]


@pytest.mark.parametrize(
    "handler",
    [
        "lambda *_: (say('stopped', reason='at a step'), sys.exit(75))",
        "signal.SIG_DFL",
        "signal.SIG_IGN",
    ],
)
def test_closing_a_launcher_ends_its_processes_and_says_so(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    monkeypatch.setattr("moebench.study.plan.PATIENCE", 0.5)
    script.write(f"signal.signal(signal.SIGTERM, {handler})\nsay('running')\ntime.sleep(60)")
    plan = a_plan(3)
    plan.write(tmp_path / "runs")
    launcher = LocalLauncher(plan, tmp_path / "runs", 2)
    with closing(launcher.run()) as looks:
        pids = begun(launcher, looks)
    assert not any(map(is_alive, pids))
    states = [launcher.record(job).status() for job in plan.jobs]
    assert [each["state"] for each in states] == ["stopped", "stopped", "waiting"]
    assert all(each["reason"] for each in states[:2])
    assert launcher.failed == []


# The real job


@pytest.fixture
def one_job(composer: Composer, small: Small, tmp_path: Path) -> Path:
    words = small("seed=choice(3)", "train.steps=2", "run.device=cpu")
    return plan_of(composer, words).write(tmp_path / "runs")


def test_a_job_trains_its_run_with_one_thread(one_job: Path, tmp_path: Path) -> None:
    assert run_job(one_job, 0) == 0
    record = Record(tmp_path / "runs" / read_plan(one_job).jobs[0].run)
    assert record.is_done()
    assert record.damage() == []
    assert record.manifest()["threads"] == 1
    assert record.manifest()["seed"] == 3
    before = record.summary()
    assert run_job(one_job, 0) == 0
    assert record.summary() == before


def test_a_job_whose_data_changed_is_refused(
    one_job: Path, capsys: pytest.CaptureFixture[str], text_folder: Path
) -> None:
    content = json.loads(one_job.read_text())
    content["runs"][0]["run"] = "global-s3-0000000000"
    one_job.write_text(json.dumps(content))
    assert run_job(one_job, 0) == 2
    assert capsys.readouterr().err == (
        "error: global-s3-0000000000: the data has changed since the plan; sweep again\n"
    )
    assert not (one_job.parents[2] / "global-s3-0000000000").exists()


@pytest.mark.slow
def test_a_job_ends_with_the_process_that_started_it(
    composer: Composer, small: Small, tmp_path: Path
) -> None:
    words = small("seed=choice(3)", "train.steps=1000000", "data.max_epochs=1e9", "run.device=cpu")
    path = plan_of(composer, words).write(tmp_path / "runs")
    code = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'moebench.study', sys.argv[1], '0', str(os.getpid())]\n"
        "print(subprocess.Popen(command).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    record = Record(path.parents[2] / read_plan(path).jobs[0].run)
    assert until(lambda: state_of(record)["step"] > 0, 60)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert until(lambda: not is_alive(child))
    assert record.status()["state"] == "stopped"
    assert "stopped by SIGTERM at step" in record.status()["reason"]
