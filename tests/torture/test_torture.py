"""The short form of each torture, the model of a loss of power, and the page of results."""

import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import unsynced
from tests.torture.__main__ import TOPICS
from tests.torture.disk import Operation
from tests.torture.topic import Results, Topic, Untried, make_attempt, remaining

ROOT = Path(__file__).parents[2]
GROUPS = (  # each takes about as long as the others
    (
        "resume",
        "determinism",
        "concurrency",
        "memory",
        "corruption",
        "provenance",
        "input",
        "network",
    ),
    ("atomic_save", "full_disk", "preemption", "power_loss", "non_finite"),
)


def test_every_topic_has_a_short_form() -> None:
    assert sorted(name for group in GROUPS for name in group) == sorted({*TOPICS} - {"versions"})


@pytest.mark.parametrize("topics", GROUPS, ids=" ".join)
def test_promises_hold_in_a_few_attempts(topics: tuple[str, ...], tmp_path: Path) -> None:
    module = [sys.executable, "-m", "tests.torture"]
    command = [*module, *topics, "--short", "--results", str(tmp_path)]
    env = {name: value for name, value in os.environ.items() if name != "MOEBENCH_CACHE"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [(tmp_path / f"{topic}.jsonl").read_text() for topic in topics]
    assert all(texts)
    made = [json.loads(line) for line in "".join(texts).splitlines()]
    untried = [f"{each['attempt']}: {each['untried']}" for each in made if "untried" in each]
    print("\n".join(untried))
    if len(untried) == len(made):
        pytest.skip(", ".join(untried))


def test_the_page_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "reliability.py"))
    page = made["PAGE"].read_text(encoding="utf-8")
    assert page == made["updated"](page), "run `python docs/reliability.py`"


def test_results_outlast_an_interruption_and_failures_are_tried_again(tmp_path: Path) -> None:
    tried: list[str] = []

    def attempt(name: str, _: Path) -> dict[str, int]:
        tried.append(name)
        if name == "absent":
            raise Untried("no such machine")
        assert name != "bad" or len(tried) > 3, "broken"
        return {"things": 2}

    topic = Topic("t", "It holds.", lambda: ["good", "bad", "absent"], attempt, short=1)
    results = Results(tmp_path / "t.jsonl")
    for name in remaining(topic, results, short=False):
        results.add(make_attempt(topic, name, tmp_path))
    before = Results(tmp_path / "t.jsonl")
    summary = before.summary(topic)
    assert (summary["tried"], summary["counts"]) == (2, {"things": 2})
    assert [result["failed"].splitlines()[0] for result in summary["failed"]] == ["broken"]
    assert summary["untried"] == ["no such machine"]
    assert list(remaining(topic, before, short=False)) == ["bad", "absent"]
    before.add(make_attempt(topic, "bad", tmp_path))
    assert Results(tmp_path / "t.jsonl").summary(topic)["failed"] == []


def test_a_short_form_passes_over_no_kind() -> None:
    kinds = "abcde"
    names = [f"{kind} {number}" for number in range(20) for kind in kinds]
    topic = Topic("t", "It holds.", lambda: names, lambda *_: {}, short=10)
    assert {name[0] for name in topic.chosen(short=True)} == {*kinds}


def operations(*lines: str) -> unsynced.Disk:
    """A disk after some operations, written as `kind path [to] [offset] [data]`."""
    disk = unsynced.Disk(Path("/d"))
    for line in lines:
        kind, path, *more = line.split()
        to = f"/d/{more[0]}" if kind == "rename" else ""
        path = "/d" if path == "." else f"/d/{path}"
        offset, data = (0, b"") if kind != "write" else (int(more[0]), more[1].encode())
        disk.apply(Operation(kind, path, to, offset, data))
    return disk


def states(disk: unsynced.Disk) -> list[dict[str, bytes | None]]:
    """The different states after a loss of power, without the folder itself."""
    made = [unsynced.state(disk, kept) for kept in unsynced.subsets(disk, random.Random(0))]
    different = {tuple(sorted(state.items())): state for state in made}
    return [{k: v for k, v in state.items() if k} for state in different.values()]


def test_what_was_synced_outlasts_a_loss_of_power_and_the_rest_may_not() -> None:
    created = "create a.tmp", "write a.tmp 0 new"
    assert {"/a.tmp": b"new"} in states(operations(*created))
    assert {"/a.tmp": b""} in states(operations(*created))
    assert {} in states(operations(*created, "sync a.tmp")), "its name was not synced"
    replaced = operations("create a", "sync .", *created, "rename a.tmp a")
    assert {"/a": b""} in states(replaced), "renamed before its content was on disk"
    safe = operations("create a", "sync .", *created, "sync a.tmp", "rename a.tmp a", "sync .")
    assert states(safe) == [{"/a": b"new"}]
    torn = operations("create a", "sync .", "write a 0 xx", "write a 2 yy")
    assert {state["/a"] for state in states(torn)} == {b"", b"xx", b"\0\0yy", b"xxyy"}


def test_a_folder_that_was_not_synced_may_lack_any_file_in_it() -> None:
    made = "folder f", "create f/a", "sync f/a", "create f/b", "sync f/b", "sync ."
    found = [{path for path in state if path != "/f"} for state in states(operations(*made))]
    assert {frozenset(names) for names in found} == {
        frozenset(names) for names in ((), ("/f/a",), ("/f/b",), ("/f/a", "/f/b"))
    }
