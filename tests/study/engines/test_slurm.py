"""The state of a job of SLURM, with accounting and without."""

import pytest

from moebench.study.engines import slurm
from moebench.study.engines.slurm import FORGOTTEN, GONE, Queue


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
    cluster.asked.clear()
    assert cluster.state(queue, "8") == "COMPLETED", "that the accounts once said so is enough"
    assert cluster.state(queue, "7_1") == "CANCELLED by 0"
    assert {command[-1] for command in cluster.asked} == {"7,8"}, "one question for all"


def test_the_queue_knows_what_the_accounts_do_not_know_yet(cluster: Cluster) -> None:
    queue = Queue()
    cluster.sacct, cluster.squeue = ["7_[0-1]|PENDING"], ["7_0|PENDING", "7_1|COMPLETED"]
    assert cluster.state(queue, "7_0") == ""
    assert cluster.state(queue, "7_1") == "COMPLETED"


@pytest.mark.parametrize("known", [[], ["7|RUNNING"]])
def test_a_job_that_the_accounts_forgot_is_not_awaited(cluster: Cluster, known: list[str]) -> None:
    queue = Queue()
    cluster.sacct, cluster.squeue = known, None
    assert cluster.state(queue, "7") == ""
    cluster.sacct = []
    cluster.now += 2 * slurm.FADED
    assert cluster.state(queue, "7") == "", "the queue did not answer"
    cluster.squeue = []
    assert cluster.state(queue, "7") == "", "the accounts may be late"
    cluster.now += slurm.FADED
    assert cluster.state(queue, "7") == FORGOTTEN


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


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_goes_back_into_the_queue_has_not_ended(cluster: Cluster, state: str) -> None:
    queue = Queue()
    cluster.sacct = [f"7|{state}"]
    assert cluster.state(queue, "7") == ""
    cluster.sacct = ["7|PENDING"]
    assert cluster.state(queue, "7") == ""
    cluster.sacct = [f"7|{state}"]
    assert cluster.state(queue, "7") == ""
    cluster.now += slurm.FADED
    assert cluster.state(queue, "7") == state


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
