"""The records that tortures of readers damage, a finished and a stopped one, and who reads what.

Both have every kind of file: a prescribed router has a map, and `evaluate` has left a result.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.errors import RecordError, Stopped
from moebench.evaluate import open_checkpoint
from moebench.experiment import run_experiment
from moebench.inspect import inspect_run
from moebench.protection import check_files, unfinished_damage
from moebench.records import Record
from moebench.report.read.run import read_run
from moebench.train.loop import Event
from tests.torture.runs import room, words

OVERRIDES = ("router=hash", "train.steps=6", "train.eval_every=3", "run.checkpoint_every=3")
STOPPED_AT = 5
RECORDS = ("finished", "stopped")


@cache
def specimen(name: str) -> Record:
    """A record of this session, made once; damage to it is undone."""
    config = Composer().compose(words(*OVERRIDES))
    corpus, runs_dir = prepare(config.data), room() / "specimens" / name

    def stop(event: Event) -> None:
        if name == "stopped" and event.step == STOPPED_AT:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        record = run_experiment(config, corpus, runs_dir, on_event=stop)
    except Stopped:
        [record] = map(Record, runs_dir.glob("*-s0-*"))
    record.save_task("cloze", {"all": {"accuracy": 0.5}})
    assert damage(record) == [], "the specimen is whole"
    return record


def files(record: Record) -> list[str]:
    """The files of a record; the view and the lock are no part of it."""
    paths = (path for path in record.path.rglob("*") if path.is_file())
    names = (path.relative_to(record.path).as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith("tensorboard/"))


def damage(record: Record) -> list[str]:
    """What `moebench verify` says."""
    return record.damage() if record.is_done() else unfinished_damage(record)


def read(record: Record, name: str) -> None:
    """Let the reader of a file read it; RecordError if it sees that the file is not what it was."""
    folder, _, _ = name.partition("/")
    if name == "status.json":
        record.status()
    elif name == "summary.json":
        record.refuse_changes()
    elif name in ("config.yaml", "manifest.json"):
        read_run(record)
    elif name == "metrics.jsonl" or folder == "routing":
        inspect_run(record.path)
    elif folder == "tasks":
        record.tasks()
    elif name.endswith("/record.json"):
        _read_protection(record, name)
    elif folder == "checkpoints":
        open_checkpoint(record, _step(name))
    else:
        open_checkpoint(record)


def _read_protection(record: Record, name: str) -> None:
    """A run that continues reads it, and before a finished one does, nobody."""
    check_files(record, *([name] if record.is_done() else []), step=_step(name))


def _step(name: str) -> int:
    return int(name.split("/")[1].removeprefix("step-"))


def refusal(record: Record, name: str) -> str:
    """What the reader of a file says of it; "" if it takes the file as it is."""
    try:
        read(record, name)
    except RecordError as error:
        return str(error)
    return ""


@contextmanager
def restored(path: Path) -> Iterator[bytes]:
    """Put a file or folder back at the end; yields the content of a file."""
    aside = path.with_name(f".{path.name}.aside")
    if path.is_dir():
        shutil.copytree(path, aside)
        content = b""
    else:
        shutil.copy2(path, aside)
        content = path.read_bytes()
    try:
        yield content
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
        os.replace(aside, path)
