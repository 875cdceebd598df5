"""`make gpu`: its parts run once each, within the time given, whatever fails, and are continued."""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
ABOUT = {
    "card": "Card | 80GB",
    "capability": [8, 0],
    "memory": 80 * 2**30,
    "in use by others": 0,
    "source": "c0ffee",
    "versions": {"torch": "2.11.0+cu130", "transformers": "5.17.0"},
}
FIGURES = json.dumps({"tables": {"Figures": [{"what": "a|b", "n": 2, "x": 1 / 3, "y": None}]}})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gpu.py, which finds its neighbours as a script does."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    module = importlib.import_module("gpu")
    for name in set(sys.modules) - before:  # other folders may have modules of these names
        monkeypatch.delitem(sys.modules, name)
    return module


Make = Callable[..., Any]


@pytest.fixture
def part(gpu: ModuleType) -> Make:
    def made(name: str, *codes: str, seconds: float = 1, **more: Any) -> Any:
        commands = tuple((sys.executable, "-S", "-c", code) for code in codes)
        return gpu.Part(name, seconds, commands, **more)

    return made


def call(gpu: ModuleType, folder: Path, of: Sequence[Any], seconds: float = 2000) -> dict[str, Any]:
    """A call of `make gpu` with these parts; returns the states."""
    gpu.work(gpu.Book(folder, ABOUT), of, seconds)
    [file] = folder.glob("*.json")
    return json.loads(file.read_text())["parts"]


def test_what_fails_stops_nothing_and_the_next_call_continues(
    gpu: ModuleType, part: Make, tmp_path: Path
) -> None:
    count = f"open({str(tmp_path / 'ran')!r}, 'a').write('NAME ')"
    mended = f"import os, sys; sys.exit(not os.path.exists({str(tmp_path / 'mended')!r}))"
    of = [
        part("bad", count.replace("NAME", "bad"), f"print('why', file=__import__('sys').stderr); "
             f"{mended}"),
        part("good", count.replace("NAME", "good"), f"print({FIGURES!r})"),
        part("long", count.replace("NAME", "long"), seconds=900),
        part("lacking", "1/0", needs=("hydra-core",)),
    ]  # fmt: skip
    first = call(gpu, tmp_path / "out", of, seconds=600)
    assert {name: result["state"] for name, result in first.items()} == {
        "bad": "failed",
        "good": "done",
        "lacking": "skipped",
    }
    assert first["bad"]["reason"] == "exit code 1"
    assert first["bad"]["output"] == "why"
    assert first["lacking"]["reason"] == "hydra-core is not there"
    assert first["good"]["tables"] == json.loads(FIGURES)["tables"]
    [page] = (tmp_path / "out").glob("*.md")
    text = page.read_text()
    assert page.stem == "card-80gb-torch-2.11.0-cu130"
    assert "| a\\|b | 2 | 0.3333 |  |" in text
    assert "| long | waiting |" in text
    (tmp_path / "mended").touch()
    second = call(gpu, tmp_path / "out", of)
    assert (tmp_path / "ran").read_text().split() == ["bad", "good", "long", "bad"]
    states = [second[name]["state"] for name in ("bad", "good", "long", "lacking")]
    assert states == ["done", "done", "done", "skipped"]
    call(gpu, tmp_path / "out", of)
    assert (tmp_path / "ran").read_text().split() == ["bad", "good", "long", "bad"]


def test_a_part_has_a_time_limit_and_what_can_be_continued_is_stopped_in_time(
    gpu: ModuleType, part: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "SHORT", 0.1)
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-Sc', 'while 1: pass'])"
    saves = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); time.sleep(60)"
    endless = part("endless", f"{child}; import time; time.sleep(60)", seconds=0.1)
    study = part("study", saves, seconds=0.6, resumable=True)
    book = gpu.Book(tmp_path, ABOUT)
    book.take(endless, left=60)
    assert book.results["endless"]["state"] == "failed"
    assert book.results["endless"]["reason"] == "took more than 0.3 s"
    book.take(study, left=2)
    assert book.results["study"]["state"] == "stopped"
    assert 1 < book.results["study"]["seconds"] < 60
    book.write([endless, study])
    book = gpu.Book(tmp_path, ABOUT)
    assert book.next_part([endless, study], set(), left=1) is study
    assert book.next_part([endless, study], {"study"}, left=1) is endless
    assert book.next_part([endless, study], set(), left=0.05) is None


def test_a_part_that_the_time_did_not_suffice_for_needs_more_the_next_time(
    gpu: ModuleType, part: Make, tmp_path: Path
) -> None:
    slow = part("slow", "import time; time.sleep(60)", seconds=0.2)
    book = gpu.Book(tmp_path, ABOUT)
    book.take(slow, left=0.3)
    assert book.results["slow"]["state"] == "stopped"
    assert book.next_part([slow], set(), left=gpu.SHORT) is None
    assert book.next_part([slow], set(), left=gpu.SHORT + 10) is slow


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (("transformers>=5.17", "bf16"), ""),
        (("transformers>=5.23",), "transformers 5.17.0 is too old; the part takes 5.23"),
        (("torch>=2.11", "hydra-core"), "hydra-core is not there"),
    ],
)
def test_what_the_machine_lacks_is_said(
    gpu: ModuleType, part: Make, needs: tuple[str, ...], reason: str
) -> None:
    assert gpu.lacks(part("x", needs=needs), ABOUT) == reason
    old = {**ABOUT, "capability": [7, 5]}
    assert gpu.lacks(part("x", needs=("bf16",)), old).startswith("compute capability 7.5 has no")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"card": null, "why": "torch is built without CUDA"}', "torch is built without CUDA"),
        ("", "no Python here"),
    ],
)
def test_without_a_gpu_one_line_says_what_it_would_do(
    gpu: ModuleType,
    answer: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = gpu.Ended(0, answer, "Traceback\nno Python here\n", cut=False)
    monkeypatch.setattr(gpu, "run", lambda *_: ended)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--minutes", "8"])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: make gpu: no GPU to run on ({why}); with one, it would run ")
    assert "(doctor, tests, race A eager, launches, " in err


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_minutes_that_are_none_are_refused(
    gpu: ModuleType, minutes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.parse_minutes(minutes)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: MINUTES={minutes}: must be a number above")


def test_the_first_eight_minutes_have_the_parts_of_most_value(gpu: ModuleType) -> None:
    left, first = 480.0, []
    for part in gpu.parts(Path("runs")):
        if part.seconds <= left:
            left -= part.seconds
            first.append(part.name)
    assert first[:6] == [
        "doctor",
        "tests",
        "race A eager",
        "launches",
        "stack D",
        "race A compiled",
    ]
    names = [part.name for part in gpu.parts(Path("runs"))]
    assert len({*names}) == len(names)


def test_the_overrides_of_parts_compose(gpu: ModuleType) -> None:
    from moebench.config.compose import Composer

    composer = Composer()
    for part in gpu.parts(Path("runs")):
        for command in part.commands:
            words = [word for word in command if "=" in word and not word.startswith("-")]
            if command[1:4] == ("-m", "moebench.cli", "sweep"):
                composer.study("scope", [word for word in words if word.startswith("study.")])
            else:
                composer.compose(words)
