"""One process at a time holds a lease, on any machine, and a dead one loses it."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from moebench import lease
from moebench.lease import LIFE, TakenError, hold, is_held
from tests.leases import elsewhere
from tests.processes import Process, is_alive, until


def hold_and_wait(path: Path) -> None:
    with hold(path):
        path.with_suffix(".held").touch()
        time.sleep(60)


def test_the_lease_of_a_process_that_was_killed_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    holder = Process(hold_and_wait, (path,))
    until(path.with_suffix(".held").exists)
    assert is_held(path)
    with pytest.raises(TakenError, match=f"^process {holder.pid} on "), hold(path):
        raise AssertionError
    holder.kill()
    holder.wait()
    assert path.exists(), "it could not remove it"
    assert not is_held(path)
    with hold(path):
        assert is_held(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.held"], "nothing is left behind"


def test_another_machine_is_believed_until_it_was_silent_for_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with elsewhere(path, silent=LIFE - 5):
        assert is_held(path)
        with pytest.raises(TakenError, match=f"^process {os.getpid()} on other$"), hold(path):
            raise AssertionError
    with elsewhere(path, silent=LIFE + 5):
        assert not is_held(path)
        with hold(path):
            assert json.loads(path.read_bytes())["machine"] == lease.this_machine()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "1"}', "\x00" * 9000])
def test_a_lease_that_says_nothing_is_believed_while_it_is_new(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "a"
    path.write_text(content)
    assert is_held(path)
    with pytest.raises(TakenError, match=r"on an unknown machine$"), hold(path):
        raise AssertionError
    os.utime(path, (0, 0))  # as the file of a `flock`, which stays for good
    assert not is_held(path)
    with hold(path):
        pass


@pytest.mark.parametrize(
    "put",
    [
        os.mkfifo,
        lambda path: path.symlink_to("nothing"),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: (path.touch(), os.utime(path, (4e9, 4e9))),  # in a hundred years
    ],
    ids=["pipe", "broken link", "device", "later"],
)
def test_what_no_process_can_have_put_there_is_no_lease(
    tmp_path: Path, put: Callable[[Path], object]
) -> None:
    put(tmp_path / "a")
    assert not is_held(tmp_path / "a")
    with hold(tmp_path / "a"):
        assert is_held(tmp_path / "a")


def test_a_number_that_another_process_got_is_no_owner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with hold(path):
        content = json.loads(path.read_bytes())
    for change, held in (({}, True), ({"start": 1}, False), ({"pid": 2**22 + 1}, False)):
        path.write_text(json.dumps({**content, **change}))
        assert is_held(path) is held


def test_a_process_that_slept_too_long_learns_that_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "_beating", {})  # a thread that beats at the new pace
    path = tmp_path / "a"
    with hold(path) as held:
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0, 5)
        assert not held.lost
        path.rename(tmp_path / "taken")
        time.sleep(0.1)
        assert not held.lost, "nobody took it"
        path.write_text("another")
        until(lambda: held.lost, 5)
    assert path.read_text() == "another", "a lost lease is left to its new owner"


def test_what_a_quicker_process_wrote_is_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find the same dead lease; the second one never moves what the first one wrote since."""
    path = tmp_path / "a"
    clock_of, written = lease._clock_of, []

    def quicker(probed: Path) -> float:
        now = clock_of(probed)
        path.unlink()
        path.write_text("the quicker one's")
        written.append(path.stat().st_ctime_ns)  # every link and rename changes it
        return now

    with elsewhere(path, silent=LIFE + 5):
        monkeypatch.setattr(lease, "_clock_of", quicker)
        with pytest.raises(TakenError, match="a process that was quicker"), hold(path):
            raise AssertionError
        assert path.read_text() == "the quicker one's"
        assert [path.stat().st_ctime_ns] == written
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_removes_a_dead_lease(tmp_path: Path) -> None:
    path, removal = tmp_path / "a", tmp_path / ".a.removal"
    with elsewhere(path, silent=LIFE + 5):
        with elsewhere(removal):
            with pytest.raises(TakenError, match=r"on other$"), hold(path):
                raise AssertionError
            assert path.exists()
        with elsewhere(removal, silent=LIFE + 5), hold(path):  # which died while it removed
            assert json.loads(path.read_bytes())["machine"] == lease.this_machine()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ahead", [-1000.0, 1000.0])
def test_the_clock_of_this_machine_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    clock = time.time
    monkeypatch.setattr(lease.time, "time", lambda: clock() + ahead)
    monkeypatch.setattr(lease, "_ahead", {})
    path = tmp_path / "a"
    with elsewhere(path, silent=LIFE - 5):
        assert is_held(path)
    with elsewhere(path, silent=LIFE + 5):
        assert not is_held(path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_was_made_though_the_answer_was_lost_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does it, which then asks again and finds the link."""
    path = tmp_path / "a"
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with hold(path):
        assert is_held(path)
    assert list(tmp_path.iterdir()) == []


def count(path: Path, times: int) -> None:
    for _ in range(times):
        with hold(path, wait=True):
            number = int(path.with_suffix(".count").read_text())
            time.sleep(0.001)
            path.with_suffix(".count").write_text(str(number + 1))


def test_processes_that_wait_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.with_suffix(".count").write_text("0")
    started = [Process(count, (path, 5)) for _ in range(4)]
    for process in started:
        assert process.wait(60) == 0, process.errors()
    assert path.with_suffix(".count").read_text() == "20"


def test_a_forked_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with hold(path):
        child = os.fork()
        if not child:
            with suppress(TakenError), hold(path):
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert is_held(path)
    assert not is_alive(child)
