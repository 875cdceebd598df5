"""One process at a time holds a run, and none after that process has died."""

import subprocess
import sys
from pathlib import Path

import pytest

from moebench.errors import LockedError, RecordError
from moebench.lease import held_here
from moebench.lock import check_held, hold, is_held
from moebench.records import Record

HOLD = """
import sys, time
from pathlib import Path
from moebench.lock import hold
from moebench.records import Record
with hold(Record(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path: Path) -> None:
    record = Record(tmp_path / "runs" / "a")
    assert not is_held(record)
    assert not record.path.parent.exists(), "asking writes nothing"
    command = [sys.executable, "-c", HOLD, str(record.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(record)
        assert not is_held(Record(record.path.with_name("b")))
        with (
            pytest.raises(
                LockedError,
                match=rf"^{record.path}: another process is training it \(process \d+ ",
            ),
            hold(record),
        ):
            raise AssertionError
        process.kill()
        process.wait()
    assert not is_held(record)
    with hold(record):
        assert is_held(record)
    assert not is_held(record)


def test_a_process_that_holds_a_run_may_hold_it_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "a")
    with hold(record):
        with hold(record):
            assert is_held(record)
        assert is_held(record)
    assert not is_held(record)


def test_runs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            RecordError, match=r"file: cannot be written \(Not a directory\); name anoth"
        ),
        hold(Record(tmp_path / "file" / "a")),
    ):
        raise AssertionError


@pytest.mark.parametrize("name", ["a", ".locks"])
def test_a_run_is_not_trained_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / name).symlink_to(tmp_path / "outside")
    with (
        pytest.raises(RecordError, match=rf"{name}: is a link to .*/outside, where nothing may"),
        hold(Record(tmp_path / "runs" / "a")),
    ):
        raise AssertionError
    assert not list((tmp_path / "outside").iterdir())


def test_a_process_that_lost_its_lock_is_told(tmp_path: Path) -> None:
    record = Record(tmp_path / "a")
    check_held(record)
    with hold(record):
        check_held(record)
        lease = held_here(tmp_path / ".locks" / "a.lock")
        assert lease is not None
        lease.lost = True
        with pytest.raises(LockedError, match="has taken it over, since this one was silent"):
            check_held(record)
