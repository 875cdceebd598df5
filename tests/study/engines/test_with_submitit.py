"""submitit: its options, and what a sweep writes down to come back. SLURM is in tests/engines/."""

import json
import pickle
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest

from moebench.config.compose import Composer
from moebench.config.presets import Presets
from moebench.errors import ConfigError, RecordError
from moebench.study import Launcher
from moebench.study.engines import Worker, with_submitit
from moebench.study.engines.choice import Choice
from moebench.study.engines.with_submitit import (
    FOLDER,
    HANDED_IN,
    Requeued,
    Submitit,
    handed_in,
)
from tests.leases import elsewhere
from tests.study.conftest import DONE, Script, a_plan

pytest.importorskip("submitit")
# submitit leaves the logs of jobs in this process open
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PRESETS = Presets()


def submitit(folder: Path, *options: str) -> Submitit:
    made = Choice("submitit", ["cluster=local", *options]).engine(PRESETS, folder)
    assert isinstance(made, Submitit)
    return made


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("cluster=lsf", "--engine cluster=lsf: must be one of slurm, local, debug"),
        (
            "slurm_partitio=a",
            "--engine slurm_partitio=a: submitit has no such option; did you",
        ),
        (
            "partition=a",
            "--engine partition=a: submitit has no such option; did you",
        ),
        ("timeout_min=soon", '--engine: Parameter "timeout_min" expected type'),
    ],
)
def test_a_wrong_option_is_explained(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        submitit(tmp_path, option)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_slurm_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = submitit(tmp_path, "cluster=slurm")
    plan = a_plan(1)
    engine.open(plan, tmp_path)
    with pytest.raises(ConfigError, match="this machine has no srun; start the sweep where SLURM"):
        engine.start([plan.jobs])


@pytest.mark.parametrize("batches", [1, 2])
def test_what_sbatch_refuses_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    batches: int,
) -> None:
    said = "sbatch: error: invalid partition specified: x"
    for name in ("srun", "sbatch", "sacct"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    engine = submitit(tmp_path, "cluster=slurm", "slurm_partition=x")
    plan = a_plan(batches)
    engine.open(plan, tmp_path)
    with pytest.raises(ConfigError) as error:
        engine.start([(job,) for job in plan.jobs])
    assert str(error.value).startswith(f"--launcher submitit: {said}; correct what --engine or")
    assert str(error.value).endswith("slurm_partition=x)")
    asking = submitit(tmp_path, "cluster=slurm", "slurm_partition=x", "gpus_per_node=1")
    with pytest.raises(ConfigError, match=f"^--launcher submitit: {said}; correct what"):
        asking.worker()
    assert capfd.readouterr().out == ""


def test_workers_without_a_gpu_are_not_asked(tmp_path: Path) -> None:
    assert submitit(tmp_path).worker() == Worker("fp32", 0)
    assert submitit(tmp_path, "gpus_per_node=0").worker() == Worker("fp32", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_with_a_gpu_is_asked_once(tmp_path: Path, script: Script) -> None:
    """Through submitit, in this process, which has none."""
    first = submitit(tmp_path, "gpus_per_node=1", "cluster=debug")
    assert first.worker() == Worker("fp32", 0)
    path = tmp_path / ".workers" / "submitit.json"
    [key] = json.loads(path.read_text())
    path.write_text(json.dumps({key: ["bf16", 2**34]}))
    again = submitit(tmp_path, "gpus_per_node=1", "cluster=debug")
    assert again.worker() == Worker("bf16", 2**34)
    config = Composer().compose()
    assert again.stack_size(config) > 1
    assert submitit(tmp_path).stack_size(config) == 1
    for damaged in ("{", json.dumps({key: "bf16"})):
        path.write_text(damaged)
        again = submitit(tmp_path, "gpus_per_node=1", "cluster=debug")
        assert again.worker() == Worker("fp32", 0), "asked again"


def test_a_worker_that_cannot_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Worker:
        raise OSError("no driver")

    monkeypatch.setattr(with_submitit, "describe_worker", broken)
    with pytest.raises(ConfigError, match=r"asks what a worker has failed; see .*\.err, or"):
        submitit(tmp_path, "gpus_per_node=1", "cluster=debug").worker()


def test_a_worker_that_answers_while_slurm_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer lies there once SLURM says that the job is over, and did not before."""
    engine = submitit(tmp_path, "cluster=slurm", "gpus_per_node=1")
    answer = tmp_path / "answer"
    job = Mock(job_id="7", **{"paths.result_pickle": answer, "exception.return_value": None})
    job.result.return_value = Worker("bf16", 1)
    queue = Mock()
    queue.ended.side_effect = lambda _: answer.touch() or "COMPLETED"
    monkeypatch.setattr(engine, "_executor", Mock())
    monkeypatch.setattr(engine, "_submit", lambda *_: [job])
    monkeypatch.setattr(engine, "_queue", queue)
    monkeypatch.setattr(engine, "poll", 0.0)
    assert engine.worker() == Worker("bf16", 1)


def test_jobs_run_by_submitit(script: Script, tmp_path: Path) -> None:
    """In this process: one is done, one is killed, and the next sweep starts that one alone."""
    script.write(
        "calm = (plan.parents[3] / 'calm').exists()\n"
        "open(plan.parents[3] / 'order', 'a').write(f'{number} ')\n"
        f"if number == 1 and not calm: say('running'); os.kill(os.getpid(), 9)\n{DONE}"
    )
    plan = a_plan(3)
    plan.write(tmp_path / "runs")

    def sweep() -> list[tuple[int, str]]:
        launcher = Launcher(plan, tmp_path / "runs", submitit(tmp_path / "runs", "cluster=debug"))
        for _ in launcher.run():
            pass
        return [(job.id, reason) for job, reason in launcher.failed]

    assert sweep() == [(1, "killed by signal 9 (Killed)")]
    (tmp_path / "calm").touch()
    assert sweep() == []
    assert (tmp_path / "order").read_text() == "0 1 2 1 "


def test_what_submitit_hands_in_again_is_a_few_words() -> None:
    made = Requeued("a/plan.json", [1], None, ("p",))
    assert made.checkpoint().function is made
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), again.plan, again.numbers) == (Requeued, "a/plan.json", (1,))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"jobs": 1}',
        '{"jobs": [{"job": "7_0", "ids": [0]}]}',
        '{"jobs": [{"job": "../7", "ids": [0], "before": [{}]}]}',
        '{"jobs": [{"job": "--all", "ids": [0], "before": [{}]}]}',
        '{"jobs": [{"job": "7", "ids": [0, 1], "before": [{}]}]}',
    ],
)
def test_a_list_of_jobs_that_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / HANDED_IN).write_text(content)
    with pytest.raises(RecordError, match=r"jobs.json: is not a list of jobs; delete it if"):
        handed_in(tmp_path)


def test_sweeps_that_hand_in_at_once_forget_no_job(tmp_path: Path) -> None:
    """The second one waits for the first one, which has read the list and not written it."""
    engine = submitit(tmp_path, "cluster=debug")
    plan = a_plan(1)
    engine.open(plan, tmp_path)
    folder = plan.path(tmp_path).parent / FOLDER
    folder.mkdir(parents=True)
    placed = Mock(jobs=plan.jobs, before={0: {}}, job=Mock(job_id="7_0"))
    with elsewhere(folder / f"{HANDED_IN}.lock"):
        noting = Thread(target=engine._note, args=([placed],))
        noting.start()
        noting.join(0.3)
        assert handed_in(folder) == []
        earlier = {"job": "6_0", "ids": [1], "before": [{}]}
        (folder / HANDED_IN).write_text(json.dumps({"jobs": [earlier]}))
    noting.join(10)
    assert [entry["job"] for entry in handed_in(folder)] == ["6_0", "7_0"]
