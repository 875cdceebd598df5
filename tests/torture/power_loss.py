"""A loss of power at each moment of a run: of what was not synced, any part may be lost.

A run is recorded with all that it writes. For each moment, states that a disk may then be in are
made (`unsynced.py`), and each must load; of some, the run continues to its end.
"""

import contextlib
import hashlib
import io
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import Corpus, prepare
from moebench.experiment.resumption import continued_from
from moebench.protection import unfinished_damage
from moebench.records import Record
from moebench.train.build import make_objective, make_state
from tests.processes import Process
from tests.torture import unsynced
from tests.torture.disk import VARIABLE, Disk, Mode, Operation
from tests.torture.runs import assert_same, configs, draw, finish, reference, room, train
from tests.torture.topic import DEADLINE, Counts, Topic

KIND = "bias"
WORDS = ("train.steps=4", "train.eval_every=2")
ENDED = 25  # one in so many states is trained to the end
PART = 10  # operations in an attempt
MARK = """
import moebench.experiment.session as session
save, seal = session.save_checkpoint, session.seal
def mark(text):
    with open({log!r}, "ab") as file:
        file.write(f"mark\\t{{text}}\\t\\t0\\t0\\n".encode())
def saved(directory, state, *more):
    made = save(directory, state, *more)
    mark(f"saved {{state.step}}")
    return made
def sealed(*arguments):
    seal(*arguments)
    mark("sealed")
session.save_checkpoint, session.seal = saved, sealed
"""


class Moment(NamedTuple):
    """A moment of the recorded run.

    Attributes:
        disk: as the operations so far left it.
        saved: the last step whose save had returned.
        sealed: whether the run had ended.
    """

    disk: unsynced.Disk
    saved: int
    sealed: bool


def attempts() -> list[str]:
    """Parts of the recorded operations."""
    last = len(_operations())
    return [f"after {first} to {min(first + PART, last)}" for first in range(0, last, PART)]


def attempt(name: str, folder: Path) -> Counts:
    """Lose power after each operation of a part, in many ways."""
    _, first, _, last = name.split()
    reference(KIND, *WORDS)
    chance, counts, seen = draw(name), Counter[str](), set[str]()
    for number in range(int(first), int(last)):
        moment = _moment(number + 1)
        for lasting in unsynced.subsets(moment.disk, chance):
            counts["states"] += 1
            state = unsynced.state(moment.disk, lasting)
            digest = _digest(state)
            if digest in seen:
                continue
            seen.add(digest)
            place = folder / "runs"
            unsynced.write(state, place)
            where = f"power lost after operation {number + 1} ({_operations()[number][:3]})"
            try:
                _check_loads(place, moment)
                counts["different"] += 1
                if len(seen) % ENDED == 0:
                    finish(KIND, place, *WORDS)
                    assert_same(KIND, place, *WORDS)
                    counts["continued"] += 1
            except Exception as error:
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
            shutil.rmtree(place)
    return counts


def _check_loads(place: Path, moment: Moment) -> None:
    """A run of this state continues from the last step whose save had returned, or a later one."""
    config, corpus = _run()
    found = [Record(path) for path in place.glob("bias-*")]
    [record] = found or [Record(place / "none")]
    if not record.exists():
        assert not moment.saved, f"the record is gone; step {moment.saved} was saved"
        return
    assert record.manifest()["arm"]
    assert record.config()["seed"] == 0
    if record.is_done():
        assert record.damage() == [], record.damage()
        return
    objective = make_objective(config, corpus.domains)
    state = make_state(config, corpus.vocab_size, torch.device("cpu"), len(corpus.domains))
    with contextlib.redirect_stderr(io.StringIO()):
        continued_from(record, state, objective, torch.device("cpu"))
    assert state.step >= moment.saved, f"continues from step {state.step}, {moment.saved} was saved"
    assert unfinished_damage(record) == [], unfinished_damage(record)
    record.cut(state.step if state.step else -1)


@cache
def _run() -> tuple[ExperimentConfig, Corpus]:
    [config] = configs(KIND, *WORDS)
    return config, prepare(config.data)


@cache
def _recorded() -> tuple[Path, Sequence[Operation]]:
    """The folder of a run, and all that it did on disk."""
    disk = Disk(room() / "recorded" / "runs", room() / "recorded" / "disk", logs=True)
    disk.folder.mkdir()
    env = {**os.environ, VARIABLE: disk.trouble(Mode.RECORD)}
    code = MARK.format(log=str(disk.log))
    process = Process(train, (KIND, str(disk.folder), WORDS, code), env)
    out, errors = process.communicate(DEADLINE)
    assert process.returncode == 0, f"{out}{errors}"
    operations = tuple(disk.logged())
    whole = unsynced.Disk(disk.folder.resolve())
    for operation in operations:
        if operation.kind != "mark":
            whole.apply(operation)
    everything = frozenset(change for node in whole.nodes() for change in node.pending)
    made = unsynced.state(whole, everything)
    for path in disk.folder.rglob("*"):
        name = "/" + path.relative_to(disk.folder).as_posix()
        wanted = None if path.is_dir() else path.read_bytes()
        assert made.get(name, b"none") == wanted, f"{name}: is not what the log says"
    return disk.folder.resolve(), operations


def _operations() -> Sequence[Operation]:
    return _recorded()[1]


def _moment(number: int) -> Moment:
    """The disk after some operations."""
    folder, operations = _recorded()
    disk, saved, sealed = unsynced.Disk(folder), 0, False
    for operation in operations[:number]:
        if operation.kind != "mark":
            disk.apply(operation)
        elif operation.path == "sealed":
            sealed = True
        else:
            saved = int(operation.path.split()[1])
    return Moment(disk, saved, sealed)


def _digest(state: unsynced.State) -> str:
    """The same for states that differ in the view and the status alone."""
    made = hashlib.sha256()
    for path, data in sorted(state.items()):
        if "/tensorboard" not in path and "status.json" not in path:
            made.update(path.encode() + b"\0" + (b"" if data is None else data) + b"\0")
    return made.hexdigest()


TOPIC = Topic(
    "power loss",
    "After a loss of power at any moment, whatever subset of the unsynced changes is lost: the run "
    "continues from the last save that had returned, or a later one, and ends as if nothing had "
    "happened.",
    attempts,
    attempt,
    short=3,
)
