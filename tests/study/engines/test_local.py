"""On several GPUs each has a process, which sees it alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from moebench import device
from moebench.config.compose import Composer, to_dict
from moebench.errors import ConfigError
from moebench.plans import Job, Plan
from moebench.study.engines import local
from moebench.study.engines.local import Local


@pytest.fixture
def plan() -> Plan:
    config = to_dict(Composer().compose())
    jobs = (Job(n, f"arm-s{n}", "arm", "0", n, (), config) for n in range(5))
    return Plan("sweep", "", "", "arm", "valid/nats", tuple(jobs))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The attempts that are made on a machine with GPUs 4, 5 and 7."""
    made: list[SimpleNamespace] = []

    def attempt(
        path: Path, job: Job, timeout: float, stacked: Sequence[Job], environ: Mapping[str, str]
    ) -> SimpleNamespace:
        process = SimpleNamespace(exitcode=None)
        made.append(SimpleNamespace(job=job, environ=environ, process=process))
        return made[-1]

    monkeypatch.setattr(local, "Attempt", attempt)
    monkeypatch.setattr(local, "on_gpu", lambda _: True)
    monkeypatch.setattr(device, "visible_gpus", lambda: ["4", "5", "7"])
    return made


def gpus(given: Sequence[SimpleNamespace]) -> list[str]:
    return [attempt.environ["CUDA_VISIBLE_DEVICES"] for attempt in given]


def test_each_gpu_gets_a_process(plan: Plan, given: list[SimpleNamespace]) -> None:
    engine = Local()
    engine.open(plan, Path())
    assert engine.room == 3
    engine.start([(job,) for job in plan.jobs[:3]])
    assert gpus(given) == ["4", "5", "7"]
    given[1].process.exitcode = 0
    engine.start([(plan.jobs[3],)])
    assert gpus(given) == ["4", "5", "7", "5"], "the one that is free"


def test_chosen_gpus_share_the_processes(
    plan: Plan, given: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(local, "stack_size", lambda _, processes: sizes.append(processes) or 8)
    engine = Local(5, gpus=[0, 2])
    engine.open(plan, Path())
    assert engine.room == 5
    engine.start([(job,) for job in plan.jobs])
    assert gpus(given) == ["4", "7", "4", "7", "4"]
    assert engine.stack_size(Composer().compose()) == 8
    assert sizes == [3], "so many share a GPU"


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (["4"], "--gpus 2: no such GPU; there are 1, from 0 to 0"),
        ([], "--gpus 2: no such GPU; there is none, so leave --gpus out"),
    ],
)
def test_a_gpu_that_is_not_there_is_named(
    plan: Plan,
    given: list[SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    seen: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(device, "visible_gpus", lambda: seen)
    with pytest.raises(ConfigError) as error:
        Local(gpus=[2]).open(plan, Path())
    assert str(error.value) == message


def test_gpus_are_named_as_they_are_visible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "DRIVERS", (tmp_path,))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8932f937")
    assert device.visible_gpus() == ["3", "GPU-8932f937"]
    monkeypatch.setattr(device, "DRIVERS", ())
    assert device.visible_gpus() == []
