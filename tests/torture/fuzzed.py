"""Inputs that hypothesis makes of valid ones, read in this process by those who would use them.

A reader must take an input, or raise a MoebenchError, within the limit, and write and connect to
nothing.
"""

import gzip
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from moebench.config.compose import Composer, from_dict, to_dict
from moebench.config.schema import DataConfig
from moebench.config.stackable import stack_key_of
from moebench.data.sources import open_source
from moebench.data.tokenizer import Subwords, train_bpe
from moebench.disk import read_json, write_bytes, write_json
from moebench.errors import MoebenchError
from moebench.evaluate import open_checkpoint
from moebench.inspect import inspect_run
from moebench.inspect.counts_file import read_counts
from moebench.plans import read_plan
from moebench.records import Record
from moebench.report.read.run import read_run
from moebench.seals import seal_of, sealable, with_digest
from moebench.study.status import run_statuses
from tests.torture.bad_files import VALUES
from tests.torture.calls import watched
from tests.torture.runs import draw, room, words
from tests.torture.specimens import OVERRIDES, files, restored, specimen
from tests.torture.topic import Counts

EXAMPLES = 60  # of an attempt
PARTS = (b"", b"\0", b"\xff", b"\n", b"{", b"]", b'"', b"1e999", b"-1", b"null", b"\x80\x00", b": ")
LETTERS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
VALUE = st.recursive(
    st.sampled_from([value for value in VALUES if len(repr(value)) < 999]) | LETTERS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=5,
)


class Reading(NamedTuple):
    """What is made of a valid input, and who reads it.

    Attributes:
        made: the inputs.
        read: takes one, with a folder that is empty at first and may be written.
    """

    made: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes of which a few parts are replaced, left out or added."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(made)))
        length = draw(st.sampled_from((0, 1, 1, 2, 9, 10**6)))
        made[at : at + length] = draw(st.sampled_from(PARTS) | st.binary(max_size=9))
    return bytes(made)


@st.composite
def changed(draw: Any, content: Any) -> Any:
    """Nested tables and lists of which a few values or keys are others, or lost."""
    made = deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        holder = made
        while keys := _keys(holder):
            key = draw(st.sampled_from(keys))
            if _keys(holder[key]) and draw(st.integers(0, 4)):
                holder = holder[key]
                continue
            if isinstance(holder, dict) and not draw(st.integers(0, 4)):
                holder[draw(LETTERS)] = holder.pop(key)
            else:
                holder[key] = deepcopy(draw(VALUE))  # which may be changed next
            break
    return made


def _keys(holder: Any) -> list[Any]:
    if isinstance(holder, dict):
        return sorted(holder)
    return list(range(len(holder))) if isinstance(holder, list) else []


def _config() -> Reading:
    """A config.yaml, and the config of a plan."""
    nested = to_dict(Composer().compose(words(*OVERRIDES)))
    text = (specimen("finished").path / "config.yaml").read_bytes()

    def read(content: Any, place: Path) -> None:
        if isinstance(content, bytes):
            (place / "config.yaml").write_bytes(content)
            Composer().compose(words(), base=place / "config.yaml")
        else:
            from_dict(content)

    return Reading(damaged(text) | changed(nested), read)


def _plan() -> Reading:
    """A plan.json, of which a job's config is read, too."""
    from tests.torture.input import a_plan

    config = to_dict(Composer().compose(words(*OVERRIDES)))
    plan = {**a_plan(), "shared": {"seed": 0}, "typed": ["a"], "secondary": [], "order": []}
    plan["runs"] = [{**plan["runs"][0], "config": config}]
    text = json.dumps(plan).encode()

    def read(content: Any, place: Path) -> None:
        path = place / "studies" / "odd-0" / "plan.json"
        write_bytes(path, content if isinstance(content, bytes) else json.dumps(content).encode())
        made = read_plan(path)
        run_statuses(made, place)
        for job in made.jobs:
            with suppress(MoebenchError):
                from_dict(job.config)
                stack_key_of(job.config)
            assert isinstance(job.title + made.title + made.slug + str(made.baseline_hash()), str)

    return Reading(damaged(text) | changed(plan), read)


@st.composite
def _file_of_a_record(draw: Any) -> tuple[str, str, bytes]:
    """Kind of record, file and content; every second one of JSON has another value."""
    kind = draw(st.sampled_from(("finished", "stopped")))
    record = specimen(kind)
    name = draw(st.sampled_from([name for name in files(record) if not name.startswith(".")]))
    content = (record.path / name).read_bytes()
    if not name.endswith(".json") or draw(st.booleans()):
        return kind, name, draw(damaged(content))
    made = draw(changed(json.loads(content)))
    return kind, name, json.dumps(made if name.startswith("check") else with_digest(made)).encode()


def _record() -> Reading:
    """A file of a record, which is sealed again, so that only its content can be refused."""

    def read(made: tuple[str, str, bytes], _: Path) -> None:
        kind, name, content = made
        record = specimen(kind)
        with ExitStack() as undone:
            for each in {name, "summary.json"} & {*files(record)}:
                undone.enter_context(restored(record.path / each))
            (record.path / name).write_bytes(content)
            if kind == "finished" and name != "summary.json":
                summary = read_json(record.path / "summary.json")
                seal = seal_of(record.path, sealable(record.path))
                write_json(record.path / "summary.json", with_digest({**summary, **seal}))
            _read_all(record)

    return Reading(_file_of_a_record(), read)


def _read_all(record: Record) -> None:
    """Each reader takes the record or says what is wrong; no other kind of error."""
    readers: tuple[Callable[[], object], ...] = (
        *(record.config, record.manifest, record.status, record.rows, record.tasks),
        *(record.refuse_changes, record.seen_damage),
        *(lambda: read_run(record), lambda: inspect_run(record.path)),
        lambda: open_checkpoint(record),
    )
    for reader in readers:
        with suppress(MoebenchError):
            reader()


def _text() -> Reading:
    """A folder with a file of text of any ending."""
    rows = [{"text": f"some words {number}"} for number in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    contents = {
        ".txt": "some words\nand ü\n".encode() * 9,
        ".md": b"# words\n" * 9,
        ".jsonl": lines,
        ".json": json.dumps(rows).encode(),
        ".txt.gz": gzip.compress(b"some words\n" * 9, mtime=0),
        ".jsonl.gz": gzip.compress(lines, mtime=0),
        ".parquet": _parquet(rows),
        ".jsonl.zst": _packed(lines),
    }
    made = st.sampled_from(sorted(contents)).flatmap(
        lambda ending: st.tuples(st.just(ending), damaged(contents[ending]))
    )

    def read(content: tuple[str, bytes], place: Path) -> None:
        (place / "one").mkdir(exist_ok=True)
        path = place / "one" / f"train{content[0]}"
        path.write_bytes(content[1])
        try:
            source = open_source(DataConfig(source="folder", path=str(place)))
            for unit in source.units(None):
                for document in source.documents(unit):
                    assert document.text, "an empty text"
                    assert b"\0" not in document.text, "a NUL"
        finally:
            path.unlink()

    return Reading(made, read)


def _parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _packed(content: bytes) -> bytes:
    import pyarrow

    sink = io.BytesIO()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
        file.flush()
        return sink.getvalue()


def _tokenizer() -> Reading:
    text = train_bpe(["some words and more words, of which some are words"] * 9, 270)

    def read(content: Any, _: Path) -> None:
        made = content if isinstance(content, bytes) else json.dumps(content).encode()
        tokens = Subwords(made, "data.tokenizer=x").encode("some wörds".encode())
        assert len(tokens) > 0, "no tokens"

    return Reading(damaged(text) | changed(json.loads(text)), read)


def _counts() -> Reading:
    """A file of counts that a trainer logged."""
    sink = io.BytesIO()
    np.savez(sink, counts=np.full((4, 2, 4), 8), step=np.arange(4))

    def read(content: bytes, place: Path) -> None:
        (place / "counts.npz").write_bytes(content)
        read_counts(place / "counts.npz", 2)

    return Reading(damaged(sink.getvalue()), read)


READINGS: dict[str, Callable[[], Reading]] = {
    "fuzzed config": cache(_config),
    "fuzzed record": cache(_record),
    "fuzzed plan": cache(_plan),
    "fuzzed text": cache(_text),
    "fuzzed tokenizer": cache(_tokenizer),
    "fuzzed counts": cache(_counts),
}


def fuzz(name: str, folder: Path, limit: float) -> Counts:
    """Let a reader read many inputs; AssertionError with the smallest that breaks the promise."""
    reading, counts = READINGS[name.rpartition(" ")[0]](), Counter[str]()

    @seed(draw(name).randrange(2**32))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[*HealthCheck],  # pyright: ignore
    )
    @given(reading.made)
    def check(made: Any) -> None:
        began = time.process_time()
        with watched() as deeds:
            try:
                reading.read(made, folder)
            except MoebenchError:
                counts["of them refused"] += 1
        taken = time.process_time() - began
        counts["fuzzed"] += 1
        assert taken < limit, f"takes {taken:.1f} s"
        roots = (os.path.realpath(room()), "/dev/null")
        for path in deeds.changed:
            assert os.path.realpath(path).startswith(roots), f"writes {path}"
        assert not deeds.connected, f"connects: {deeds.connected[0]}"

    check()
    return counts
