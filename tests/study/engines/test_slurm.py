"""The state of a job of SLURM, with accounting and without."""

import pytest

from moebench.study.engines import slurm
from moebench.study.engines.slurm import GONE, Queue


class Cluster:
    """Answers in place of SLURM's commands; None is an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sacct: list[str] | None = None
        self.squeue: list[str] | None = []
        self.asked: list[tuple[str, ...]] = []
        self.now = 1000.0
        monkeypatch.setattr(slurm, "_lines", self._answer)
        monkeypatch.setattr(slurm.time, "monotonic", lambda: self.now)

    def _answer(self, *command: str) -> list[str] | None:
        self.asked.append(command)
        return self.sacct if command[0] == "sacct" else self.squeue

    def state(self, queue: Queue, job: str) -> str:
        self.now += slurm.ASK + 1
        return queue.ended(job)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_accounts_tell_the_state(cluster: Cluster) -> None:
    queue = Queue()
    cluster.sacct = ["7_0|RUNNING", "7_1|CANCELLED by 0", "7_[2-3]|PENDING", "8|COMPLETED"]
    assert cluster.state(queue, "7_0") == ""
    assert cluster.state(queue, "7_1") == "CANCELLED by 0"
    assert cluster.state(queue, "7_2") == "", "nobody knows it yet"
    assert cluster.state(queue, "8") == "COMPLETED"
    cluster.sacct = ["7_0|OUT_OF_MEMORY"]
    assert cluster.state(queue, "7_0") == "OUT_OF_MEMORY"
    assert {command[0] for command in cluster.asked} == {"sacct"}
    assert cluster.asked[-1][-1] == "7,8", "one question for all"


def test_without_accounts_the_queue_tells_it(cluster: Cluster) -> None:
    queue = Queue()
    cluster.squeue = ["7_0|RUNNING", "7_1|FAILED"]
    assert cluster.state(queue, "7_0") == ""
    assert cluster.state(queue, "7_1") == "FAILED"
    cluster.squeue = []
    assert cluster.state(queue, "7_0") == GONE
    assert [command[0] for command in cluster.asked].count("sacct") == 1, "it is asked once"
    cluster.squeue = None  # the controller does not answer
    assert cluster.state(queue, "7_0") == GONE


def test_a_job_that_goes_back_into_the_queue_has_not_ended(cluster: Cluster) -> None:
    queue = Queue()
    cluster.sacct = ["7|PREEMPTED"]
    assert cluster.state(queue, "7") == ""
    cluster.sacct = ["7|PENDING"]
    assert cluster.state(queue, "7") == ""
    cluster.sacct = ["7|PREEMPTED"]
    assert cluster.state(queue, "7") == ""
    cluster.now += slurm.FADED
    assert cluster.state(queue, "7") == "PREEMPTED"


def test_questions_are_not_asked_too_often(cluster: Cluster) -> None:
    queue = Queue()
    cluster.sacct = [f"7_{number}|RUNNING" for number in range(1000)]
    for number in range(1000):
        queue.add(f"7_{number}")
    for number in range(1000):
        assert queue.ended(f"7_{number}") == ""
    cluster.now += slurm.ASK + 1
    queue.ended("7_0")
    assert len(cluster.asked) == 1, "of many jobs less often"
    cluster.now += 5
    queue.ended("7_0")
    assert len(cluster.asked) == 2
