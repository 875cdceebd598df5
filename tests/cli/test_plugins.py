"""Methods of one's own: chosen by name from a module, recorded by hash, and wrong in one line."""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from moebench import methods
from moebench.config.compose import Composer
from moebench.config.identity import run_hash
from moebench.methods import load_plugin
from tests.calls import Call

MINE = """
from dataclasses import dataclass
from moebench.balance import Method
from moebench.methods import Option, register

@register("mine", "nothing", {"size": Option(1, "of nothing", above=0)})
@dataclass(frozen=True)
class Mine(Method):
    size: float
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a test declares, imports and puts on the path is gone after it."""
    monkeypatch.setattr(methods, "_known", dict(methods._known))
    monkeypatch.setattr(methods, "_plugins", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in {"mine", "other"} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.mark.parametrize("name", ["mine", "mine.py"])
def test_a_method_is_found_by_module_and_by_file(name: str) -> None:
    Path("mine.py").write_text(MINE)
    load_plugin(name)
    load_plugin(name)  # once more is no error
    config = Composer().compose(["method.name=mine"])
    assert config.method.options == {"size": 1.0}
    assert config.method.plugin is not None
    assert config.method.plugin.startswith("mine@")


def test_another_text_is_another_run_and_another_path_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for name, text in (("mine.py", MINE), ("other.py", MINE), ("mine.py", MINE + "# other")):
        Path(name).write_text(text)
        monkeypatch.setattr(methods, "_known", {each.name: each for each in methods.SHIPPED})
        load_plugin(name)
        found.append(run_hash(Composer().compose(["method.name=mine"]), ""))
    assert found[0] == found[1] != found[2]


def test_an_entry_point_is_loaded_when_its_name_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(MINE)

    def points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [EntryPoint("mine", "mine:Mine", group)] if name in (None, "mine") else []

    monkeypatch.setattr(methods, "entry_points", points)
    assert "mine" not in methods._known
    assert "mine" in methods.names()
    assert Composer().compose(["method.name=mine"]).method.options == {"size": 1.0}


WRONG = {
    ("nowhere", ""): "--plugin nowhere: there is no such module; name a module or a .py file",
    ("nowhere.py", ""): "--plugin nowhere.py: there is no such module; name a module or a .py file",
    ("a.b.c", ""): "--plugin a.b.c: cannot be found (No module named 'a'); name a module or a file",
    ("mine", "1 / 0"): "--plugin mine: raises ZeroDivisionError: division by zero when it is "
    "imported; mend it",
    ("mine", "raise SystemExit('bye')"): "--plugin mine: raises SystemExit: bye when it is ",
    ("mine", "import nowhere"): "--plugin mine: raises ModuleNotFoundError: No module named ",
    ("mine", "def ("): "--plugin mine: raises SyntaxError: ",
    ("mine", ""): "--plugin mine: declares no method; put @register(...) on its class",
    ("mine", MINE.replace('"mine"', '"bias"')): "mine: the method bias is there already; rename it",
    ("mine", MINE.replace('"mine"', '"loss"')): "mine: the method loss is there already; rename it",
}


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_broken_plugin_is_one_line(call: Call, name: str, text: str) -> None:
    Path("mine.py").write_text(text)
    result = call("train", "--plugin", name, "--print-config")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {WRONG[name, text]}")
    assert result.err.count("\n") == 1


def test_a_wrong_option_is_one_line(call: Call) -> None:
    Path("mine.py").write_text(MINE)
    result = call("train", "--plugin", "mine", "method.name=mine", "method.options.sise=1")
    assert result.err == (
        "error: method.options.sise=1: method=mine has no such option; did you mean size?\n"
    )


def test_a_record_names_the_plugin_and_never_loads_it(call: Call) -> None:
    Path("mine.py").write_text(MINE)
    told = call("train", "--plugin", "mine", "method.name=mine", "--print-config")
    Path("config.yaml").write_text(told.out)
    plugin = told.out.partition("plugin: ")[2].split()[0]
    methods._known.pop("mine")
    sys.modules.pop("mine")
    without = call("train", "--config", "config.yaml", "--print-config")
    assert without.code == 2
    assert without.err.startswith("error: method.name=mine: no such method; there are loss, ")
    Path("mine.py").write_text(MINE + "# changed")
    changed = call("train", "--plugin", "mine", "--config", "config.yaml", "--print-config")
    assert changed.code == 2
    assert changed.err.startswith(f"error: method.plugin={plugin}: is another version than that")
    word = ("method.plugin=null", "--json")
    again = call("train", "--plugin", "mine", "--config", "config.yaml", "--print-config", *word)
    assert json.loads(again.out)["config"]["method"]["name"] == "mine"


def test_sweeps_hand_a_plugin_to_their_processes(call: Call, text_folder: Path) -> None:
    Path("mine.py").write_text(MINE)
    small = [
        *("model=smoke", "train.steps=2", "global_bsz=8", "seq_len=16", "data.valid_sequences=2"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "loss.balance=0"),
    ]
    result = call("sweep", "--plugin", "mine.py", "method.name=loss,mine", *small, "--json")
    assert result.code == 0, result.err
    arms = [json.loads(path.read_text())["arm"] for path in Path("runs").glob("*/summary.json")]
    assert sorted(arms) == ["mine", "none"]
