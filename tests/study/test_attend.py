"""A worker trains its batch, says why a job failed, and does not trust a plan that it cannot."""

import json
import pickle
import shlex
import subprocess
from pathlib import Path
from time import time
from types import SimpleNamespace

import pytest

from moebench.errors import ConfigError, RecordError
from moebench.records import Record
from moebench.study import attend as worker
from moebench.study.attend import Attendant, attend, describe_worker
from moebench.study.engines.commands import Commands
from moebench.study.status import last_status
from tests.leases import elsewhere
from tests.study.conftest import DONE, Script, a_plan


def test_a_batch_is_trained_as_often_as_one_likes(script: Script, tmp_path: Path) -> None:
    script.write(DONE + "open(plan.parents[3] / 'order', 'a').write(sys.argv[2] + ' ')")
    path = str(a_plan(4).write(tmp_path / "runs"))
    assert [attend(path, [number], None, ()) for number in (2, 0, 2)] == [(0, {})] * 3
    assert (tmp_path / "order").read_text() == "2 0 ", "what is done is left alone"


def test_a_job_that_fails_says_why(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write("say('running'); os.kill(os.getpid(), 9)")
    plan = a_plan(1)
    reason = "killed by signal 9 (Killed)"
    assert attend(str(plan.write(tmp_path / "runs")), [0], None, ()) == (1, {0: reason})
    assert capsys.readouterr().err == f"error: {plan.jobs[0].run}: {reason}\n"
    assert last_status(Record(tmp_path / "runs" / plan.jobs[0].run))["reason"] == reason


def test_a_run_that_another_machine_trains_is_awaited(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.write("say('failed', reason='not reached')")
    plan = a_plan(1)
    path = plan.write(tmp_path / "runs")
    record = Record(tmp_path / "runs" / plan.jobs[0].run)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:  # the other machine finishes
            record.begin("a: 1", {})
            record.seal({})
            lease.unlink()

    monkeypatch.setattr("moebench.study.launcher.time", SimpleNamespace(sleep=sleep, time=time))
    lease = tmp_path / "runs" / ".locks" / f"{record.name}.lock"
    with elsewhere(lease):
        assert attend(str(path), [0], None, ()) == (0, {})
    assert len(slept) in (3, 4)


def test_a_plan_that_cannot_be_trusted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LATE", 0.0)
    path = a_plan(2).write(tmp_path / "runs")
    content = json.loads(path.read_text())
    content["runs"][0]["config"]["seed"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"plan.json: was edited after its sweep; restore"):
        attend(str(path), [0], None, ())
    other = a_plan(1).write(tmp_path / "runs")
    path.write_bytes(other.read_bytes())
    with pytest.raises(RecordError, match=r"plan.json: is not where the sweep wrote it; sweep"):
        attend(str(path), [0], None, ())
    path.unlink()
    with pytest.raises(RecordError, match=r"does not see the plan; name a directory that all work"):
        attend(str(path), [0], None, ())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^WORLD_SIZE: .*start it without torchrun$"):
        attend(str(path), [0], None, ())


def test_what_runs_elsewhere_is_a_few_words() -> None:
    made = pickle.loads(pickle.dumps(Attendant("a/plan.json", [1, 2], 60.0, ("p",))))
    assert (made.plan, made.numbers, made.timeout, made.plugins) == (
        *("a/plan.json", (1, 2)),
        *(60.0, ("p",)),
    )
    assert describe_worker() == ("fp32", 0)


def test_a_command_works_anywhere(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from another folder, and with a name that a shell would split."""
    folder = tmp_path / "a b;c"
    plan = a_plan(2)
    plan.write(folder)
    engine = Commands(timeout=90)
    monkeypatch.chdir(tmp_path)
    engine.open(plan, Path("a b;c"))
    (folder / "studies" / plan.slug / "logs").mkdir()
    command = engine.command(plan.jobs)
    words = shlex.split(command)
    assert words[words.index("-m") + 1 :][:4] == [
        *("moebench.study.attend", str(plan.path(folder))),
        *("0,1", "--timeout"),
    ]
    code = "import sys; print(*sys.argv[1:]); sys.exit(3)"
    tried = command.replace("-m moebench.study.attend", f"-c {shlex.quote(code)}")
    assert subprocess.run(tried, shell=True, cwd="/").returncode == 3
    log = folder / "studies" / plan.slug / "logs" / f"{plan.jobs[0].run}.out"
    assert log.read_text() == f"{plan.path(folder)} 0,1 --timeout 90\n"
