"""Records mirrored in trackers: what is sent, when, and what happens if a tracker fails.

The libraries of trackers are large (wandb 81 MB, Trackio 135 MB, MLflow 621 MB), so small stand-ins
with the part of their interface that is used take their place.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moebench import tracking
from moebench.config.compose import Composer, to_yaml
from moebench.errors import ConfigError, RecordError
from moebench.records import Record
from moebench.tracking import Mirror, following
from moebench.tracking.feed import About, about
from moebench.tracking.trackers import TRACKERS, open_tracker
from tests.processes import moebench

STEPS = 40


class Kept:
    """A tracker that keeps what it gets."""

    name = "kept"

    def __init__(self, failing_at: int = -1) -> None:
        self.begun: list[About] = []
        self.rows: list[tuple[int, dict[str, float], list[str]]] = []
        self.ended: list[tuple[str, dict[str, float]]] = []
        self.failing_at = failing_at

    def begin(self, about: About) -> Any:
        self.begun.append(about)
        self.rows.clear()
        return self

    def row(self, step: int, metrics: Any, pictures: Any, time: float) -> None:
        if step == self.failing_at:
            raise OSError(101, "Network is unreachable")
        self.rows.append((step, metrics, [*pictures]))

    def end(self, state: str, summary: dict[str, float]) -> None:
        self.ended.append((state, summary))

    @property
    def steps(self) -> list[int]:
        return [step for step, _, _ in self.rows]


def begun(folder: Path, start: str = "2026-01-01T00:00:00+00:00") -> Record:
    """A record that a run has just begun."""
    record = Record(folder / "micro-s0-0123456789")
    config = Composer().compose(["scope=micro", f"train.steps={STEPS}"])
    manifest = {"arm": "micro", "hash": "0123456789", "domains": ["a", "b"], "start": start}
    record.begin(to_yaml(config), manifest)
    record.set_status("running", step=0)
    return record


def grow(record: Record, *steps: int, evaluated: bool = False) -> None:
    for step in steps:
        row = {"step": step, "time": 1.0 * step, "train/loss": 5.0 - step, "load/util/0": [1, 1]}
        record.append(row | ({"valid/nats": 4.0} if evaluated else {}))


def evaluate(record: Record, step: int) -> None:
    counts = np.arange(1 * 2 * 16).reshape(1, 2, 16)
    record.save_routing(step, {"counts": counts})


def seal(record: Record) -> None:
    record.seal({"status": "done", "arm": "micro", "seed": 0, "valid/nats": 3.5, "steps": STEPS})


PICTURES = ["load/experts", "specialization/domain/0"]


def test_a_record_is_sent_while_it_grows(tmp_path: Path) -> None:
    tracker, record = Kept(), Record(tmp_path / "micro-s0-0123456789")
    mirror = Mirror(tracker, [record])
    mirror.update()  # there is nothing yet
    begun(tmp_path)
    mirror.update()
    assert [about.name for about in tracker.begun] == [record.name]
    assert (tracker.begun[0].arm, tracker.begun[0].config["scope"]) == ("micro", "micro")
    grow(record, 0, evaluated=True)
    mirror.update()  # the routing of an evaluation comes after its row
    assert tracker.steps == []
    evaluate(record, 0)
    grow(record, 1)
    with open(record.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "tra')  # a row that is being written
    mirror.update()
    assert tracker.rows == [
        (0, {"train/loss": 5.0, "valid/nats": 4.0}, PICTURES),
        (1, {"train/loss": 4.0}, []),
    ]
    record.cut(1)
    grow(record, 2, STEPS, evaluated=True)
    seal(record)
    mirror.update()
    mirror.update(last=True)
    assert tracker.steps == [0, 1, 2, STEPS]
    assert tracker.ended == [("done", {"valid/nats": 3.5})]
    Mirror(again := Kept(), [record]).update(last=True)
    assert (again.rows[1:], again.ended) == (tracker.rows[1:], tracker.ended)


def test_a_run_that_continues_or_starts_afresh(tmp_path: Path) -> None:
    tracker, record = Kept(), begun(tmp_path)
    mirror = Mirror(tracker, [record])
    grow(record, 0, 1, 2, 3)
    mirror.update()
    record.cut(1)
    begun(tmp_path)  # the manifest is written again
    mirror.update()
    grow(record, 2, 3, 4)
    mirror.update()
    assert (tracker.steps, len(tracker.begun)) == ([0, 1, 2, 3, 4], 1)
    (record.path / "metrics.jsonl").unlink()
    begun(tmp_path, "2026-01-01T01:00:00+00:00")
    grow(record, 0)
    record.set_status("stopped", step=0)
    mirror.update(last=True)
    assert (tracker.steps, len(tracker.begun), tracker.ended) == ([0], 2, [("stopped", {})])


def test_rows_that_were_cut_and_made_again_between_two_looks(tmp_path: Path) -> None:
    """The file is longer than before, and what was read last ends within a row of now."""
    tracker, record = Kept(), begun(tmp_path)
    mirror = Mirror(tracker, [record])
    grow(record, 0, 1, 2, 3)
    mirror.update()
    record.cut(1)
    record.append({"step": 2, "time": 123456.789, "train/loss": 3.0})
    grow(record, 3, 4, 5)
    mirror.update()
    assert tracker.steps == [0, 1, 2, 3, 4, 5]


def test_a_record_without_a_manifest_is_named(tmp_path: Path) -> None:
    record = begun(tmp_path)
    (record.path / "manifest.json").unlink()
    with pytest.raises(RecordError, match=r"manifest\.json: cannot be read"):
        Mirror(Kept(), [record]).update(last=True)


def test_a_tracker_that_fails_says_so_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "EVERY", 0.01)
    said: list[str] = []
    done = begun(tmp_path / "done")
    seal(done)
    tracker, record = Kept(failing_at=1), begun(tmp_path)
    with following(tracker, [record, done], said.append):
        grow(record, 0, 1, 2)
    assert said == [
        "--track kept: failed (Network is unreachable); the run goes on; moebench track sends it "
        "later"
    ]
    assert [about.name for about in tracker.begun] == [record.name]
    sound = Kept()
    with following(sound, [record], said.append):
        grow(record, 3)
        seal(record)
    assert (sound.steps, sound.ended[0][0]) == ([0, 1, 2, 3], "done")
    (record.path / "metrics.jsonl").write_text("nothing\n")
    with pytest.raises(RecordError, match=r"metrics.jsonl:1: is not a row of metrics"):
        Mirror(Kept(), [record]).update()


class Calls:
    """A stand-in for a library: it notes calls, and returns itself or what it was told to."""

    summary: Any
    entities: Any
    finish: Any
    name: Any

    def __init__(self, **returns: Any) -> None:
        self.__file__ = "stand-in"
        self._returns, self.noted = returns, []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            self.noted.append((name, args, named))
            found = self._returns.get(name, self)
            if isinstance(found, Exception):
                raise found
            return found

        return call

    def of(self, name: str) -> list[Any]:
        return [(args, named) for called, args, named in self.noted if called == name]


@pytest.fixture
def sent(tmp_path: Path) -> Record:
    record = begun(tmp_path)
    grow(record, 0, evaluated=True)
    evaluate(record, 0)
    grow(record, 1)
    seal(record)
    return record


def test_a_strangers_hash_selects_no_other_run(tmp_path: Path) -> None:
    """Trackers search for the run that they replace by the hash in its manifest."""
    record = Record(tmp_path / "run")
    record.begin(to_yaml(Composer().compose([])), {"hash": "a' AND tags.x != 'b"})
    assert about(record).identity == "a__AND_tags_x_____b"


def test_wandb(sent: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Calls(login=True)
    library.summary = {}  # of a run
    monkeypatch.setitem(sys.modules, "wandb", library)
    Mirror(open_tracker("wandb"), [sent]).update()
    [(_, named)] = library.of("init")
    assert (named["id"], named["name"], named["group"]) == ("0123456789", sent.name, "micro")
    assert named["config"]["scope"] == "micro"
    (first,), at = library.of("log")[0]
    assert at == {"step": 0}
    assert {"train/loss", "load/experts"} < first.keys()
    assert [at["step"] for _, at in library.of("log")] == [0, 1]
    assert library.summary == {"final/valid/nats": 3.5}
    assert library.of("finish") == [((), {"exit_code": 0})]
    monkeypatch.setitem(sys.modules, "wandb", Calls(login=False))
    with pytest.raises(ConfigError, match="--track wandb: is not logged in; run wandb login, or"):
        open_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert open_tracker("wandb").name == "wandb"


def test_mlflow(sent: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(info=SimpleNamespace(run_id="old"))
    new = SimpleNamespace(info=SimpleNamespace(run_id="new"))
    client = Calls(search_runs=[old], create_run=new, get_experiment_by_name=None)
    library = Calls(MlflowClient=client)
    library.entities = SimpleNamespace(Param=lambda *it: it, Metric=lambda *it: it)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    Mirror(open_tracker("mlflow"), [sent]).update()
    assert client.of("create_experiment") == [(("moebench",), {})]
    assert client.of("delete_run") == [(("old",), {})]
    batches = [named for _, named in client.of("log_batch")]
    params = [param for batch in batches for param in batch.get("params", ())]
    assert ("scope", "micro") in params
    assert all(len(batch.get("params", ())) <= 100 for batch in batches)
    metrics = [metric for batch in batches for metric in batch.get("metrics", ())]
    assert ("train/loss", 4.0, 1767225601000, 1) in metrics
    assert [named["key"] for _, named in client.of("log_image")] == PICTURES
    assert client.of("set_terminated") == [(("new", "FINISHED"), {})]


def test_trackio(
    sent: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, other = Calls(), Calls()
    old.name, other.name = sent.name, "other"
    library = Calls(runs=[old, other])
    inner = ModuleType("trackio.run")
    exec("def finish(): print('how to open the dashboard')", vars(inner))

    def finish() -> None:
        vars(inner)["finish"]()
        print("a line of the run, printed meanwhile")

    library.finish = finish
    monkeypatch.setitem(sys.modules, "trackio", library)
    monkeypatch.setitem(sys.modules, "trackio.run", inner)
    Mirror(open_tracker("trackio"), [sent]).update()
    assert capsys.readouterr().out == "a line of the run, printed meanwhile\n"
    assert (len(old.of("delete")), len(other.of("delete"))) == (1, 0)
    [(args, named)] = library.of("init")
    assert (args, named["name"]) == (("moebench",), sent.name)
    assert [at["step"] for _, at in library.of("log")] == [0, 1, 1]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_is_missing_or_cannot_reach_its_server(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"not installed; run pip install 'moebench\[{name}\]'"):
        open_tracker(name)
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(__file__=None))  # a folder of that name
    with pytest.raises(ConfigError, match="not installed"):
        open_tracker(name)
    broken = OSError(101, "Network is unreachable")
    library = Calls(login=broken, MlflowClient=broken, whoami=broken, get_token="token")
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "a/b")
    with pytest.raises(ConfigError, match=r"cannot be reached \(Network is unreachable\); \w+"):
        open_tracker(name)


def test_commands(sent: Record, tmp_path: Path) -> None:
    for words, line in (
        (
            ["track", str(tmp_path), "--to", "sacred"],
            "--to sacred: is no tracker; there are",
        ),
        (["track", str(tmp_path / "none"), "--to", "mlflow"], "holds no runs; name some"),
        (["sweep", "data.path=none", "data=folder", "--track", "lost"], "--track lost: is no tr"),
        (["train", "data.path=none", "data=folder", "--track", "lost"], "--track lost: is no tr"),
        (["sweep", "--track", "wandb", "--detach"], "does not stay to follow its runs"),
    ):
        process = moebench(*words, cwd=tmp_path)
        _, errors = process.communicate(60)
        assert (process.returncode, line in errors) == (2, True), errors
    assert json.loads((sent.path / "manifest.json").read_text())["arm"] == "micro"
