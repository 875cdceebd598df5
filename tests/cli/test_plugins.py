"""Scopes and methods of your own: chosen by name, recorded by hash, and wrong in one line."""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from moebench import methods, registry, scopes
from moebench.balance import make_scope
from moebench.config import identity
from moebench.config.compose import Composer
from moebench.config.treatment import Treatment
from moebench.errors import ConfigError
from moebench.registry import load_plugin
from tests.calls import Call

STRIDED = Path(__file__).parents[2] / "examples" / "strided_scope.py"
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
    for each in (methods.METHODS, scopes.SCOPES):
        monkeypatch.setattr(each, "known", dict(each.known))
    monkeypatch.setattr(registry, "_plugins", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in {"mine", "other", STRIDED.stem} & (set(sys.modules) - before):
        del sys.modules[name]


def run_hash(*overrides: str) -> str:
    return identity.run_hash(Treatment.of(Composer().compose(overrides)), "")


def label(*overrides: str) -> str:
    return identity.label(Treatment.of(Composer().compose(overrides)))


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
        monkeypatch.delitem(methods.METHODS.known, "mine", raising=False)
        load_plugin(name)
        found.append(run_hash("method.name=mine"))
    assert found[0] == found[1] != found[2]


def test_an_entry_point_is_loaded_when_its_name_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(MINE)

    def points(group: str, name: str | None = None) -> list[EntryPoint]:
        there = group == "moebench.methods" and name in (None, "mine")
        return [EntryPoint("mine", "mine:Mine", group)] if there else []

    monkeypatch.setattr(registry, "_entry_points", points)
    assert "mine" not in methods.METHODS.known
    assert "mine" in [*methods.METHODS]
    assert Composer().compose(["method.name=mine"]).method.options == {"size": 1.0}


def test_a_scope_of_an_entry_point_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(STRIDED.parent)

    def points(group: str, name: str | None = None) -> list[EntryPoint]:
        there = group == "moebench.scopes" and name in (None, "strided")
        return [EntryPoint("strided", "strided_scope:Strided", group)] if there else []

    monkeypatch.setattr(registry, "_entry_points", points)
    assert label("scope=strided", "balance_bsz=8") == "strided-8"


def test_a_scope_is_what_it_is_called_and_what_it_equals() -> None:
    load_plugin(str(STRIDED))
    assert label("scope=strided", "balance_bsz=8") == "strided-8"
    assert label("scope=strided") == "strided"  # of micro_bsz sequences
    assert label("balance.terms=[{},{scope:strided,weight:0.5}]") == "global + 0.5 strided"
    assert run_hash("scope=strided", "balance_bsz=1") == run_hash("scope=sequence")
    assert run_hash("scope=strided", "balance_bsz=128") == run_hash("scope=global")
    assert run_hash("scope=strided", "balance_bsz=8") != run_hash("scope=global", "balance_bsz=8")
    buffer = ("scope=strided", "balance_bsz=4", "balance.estimator=buffer")
    assert label(*buffer) == "strided buffer=4", "no logical pass holds whole groups"
    with pytest.raises(ConfigError, match="balance_bsz=3: must divide global_bsz=128"):
        Composer().compose(["scope=strided", "balance_bsz=3"])


def test_every_nth_sequence_is_in_one_group() -> None:
    load_plugin(str(STRIDED))
    scope = make_scope("strided", micro_bsz=2, balance_bsz=4)
    assert scope is not None
    label, groups = scope.labels(12)
    assert (label.tolist(), groups) == ([0, 1, 2] * 4, 3)


def test_a_scope_of_a_plugin_is_trained_recorded_and_never_loaded(
    call: Call, text_folder: Path
) -> None:
    small = [
        *("model=smoke", "train.steps=2", "global_bsz=16", "micro_bsz=2", "seq_len=16"),
        *("data=folder", f"data.path={text_folder}", "data.valid_sequences=2", "run.device=cpu"),
    ]
    chosen = ("scope=strided", "balance_bsz=8")
    result = call("train", "--plugin", str(STRIDED), *chosen, *small, "--json")
    assert result.code == 0, result.err
    run = Path(json.loads(result.out)["run"])
    assert run.name.startswith("strided-8-s0-")
    science = json.loads((run / "manifest.json").read_text())["science"]
    assert (science["scope"], science["balance_bsz"]) == ("strided", 8)
    [plugin] = [line for line in (run / "config.yaml").read_text().split() if "@" in line]
    assert science["balance.plugins"] == {"strided": plugin.partition("@")[2]}

    scopes.SCOPES.known.pop("strided")
    sys.modules.pop(STRIDED.stem)
    again = ("train", "--config", str(run / "config.yaml"), "--print-config")
    without = call(*again)
    assert without.code == 2
    assert without.err == (
        f"error: scope=strided: is a scope of the plugin {plugin}, which is not loaded; add "
        "--plugin with the file or module strided_scope\n"
    )
    Path("strided_scope.py").write_text(STRIDED.read_text() + "# changed")
    changed = call(*again, "--plugin", "strided_scope.py")
    assert changed.code == 2
    assert changed.err.startswith(
        f"error: balance.plugins={{strided:{plugin}}}: is another version than that at hand, "
    )
    accepted = call(*again, "--plugin", "strided_scope.py", "balance.plugins={}", "--json")
    assert json.loads(accepted.out)["config"]["balance"]["plugins"]["strided"] != plugin


def test_a_scope_that_nothing_declares_is_an_error_everywhere() -> None:
    for refused in (
        lambda: scopes.declared("strided"),
        lambda: scopes.default_size("strided", {}),
        lambda: scopes.canonical("strided", 8, {}),
        lambda: make_scope("strided", micro_bsz=2),
    ):
        with pytest.raises(ConfigError, match=r"^scope=strided: no such scope; there are none, "):
            refused()
    with pytest.raises(ConfigError, match=r"^scope=strided: no such scope; there are "):
        Composer().compose(["scope=strided"])


# of a scope of a plugin: its class, the words of `register` after its meaning, and what is wrong
BROKEN = (
    ("class Mine:\n    size: int", "", "Mine is not a moebench.balance.Scope"),
    ("return 1 / 0", "", "its labels raise ZeroDivisionError: division by zero"),
    ("return torch.arange(3), 3", "", "its labels have the shape [3], and must have [8]"),
    ("return torch.arange(sequences), 2", "", "its labels must be whole numbers from 0 to 1"),
    ("", "size='nosuch'", "the scope mine: has the size nosuch; give a number of sequences, or "),
)


@pytest.mark.parametrize(("body", "words", "wrong"), BROKEN)
def test_a_broken_scope_is_one_line_before_anything_is_written(
    call: Call, text_folder: Path, body: str, words: str, wrong: str
) -> None:
    if not body.startswith("class"):
        body = (
            "class Mine(Scope):\n    size: int\n"
            f"    def labels(self, sequences, domain=None, device=None):\n        {body or 'pass'}"
        )
    Path("mine.py").write_text(
        "import dataclasses, torch\nfrom moebench.balance import Scope\n"
        f"from moebench.scopes import register\n@register('mine', 'Mine.', {words})\n"
        f"@dataclasses.dataclass(frozen=True)\n{body}\n"
    )
    small = ("model=smoke", "global_bsz=8", "seq_len=16", "train.steps=1", "run.device=cpu")
    data = ("data=folder", f"data.path={text_folder}", "data.valid_sequences=4")
    result = call("train", "--plugin", "mine.py", "scope=mine", *small, *data)
    scopes.SCOPES.known.pop("mine", None)
    sys.modules.pop("mine", None)
    assert result.code == 2
    [line] = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert wrong in line
    assert line.startswith(("error: scope=mine: ", "error: --plugin mine.py: "))
    assert not Path("runs").exists()


WRONG = {
    ("mine", MINE.replace('"mine"', '"Mine x"')): "--plugin mine: the method 'Mine x': must be ",
    ("nowhere", ""): "--plugin nowhere: there is no such module; name a module or a .py file",
    ("nowhere.py", ""): "--plugin nowhere.py: there is no such module; name a module or a .py file",
    ("a.b.c", ""): "--plugin a.b.c: cannot be found (No module named 'a'); name a module or a file",
    ("mine", "1 / 0"): "--plugin mine: raises ZeroDivisionError: division by zero when it is "
    "imported; correct the module",
    ("mine", "raise SystemExit('bye')"): "--plugin mine: raises SystemExit: bye when it is ",
    ("mine", "import nowhere"): "--plugin mine: raises ModuleNotFoundError: No module named ",
    ("mine", "def ("): "--plugin mine: raises SyntaxError: ",
    ("mine", ""): "--plugin mine: declares no scope and no method; put @register(...) on its class",
    (
        "mine",
        MINE.replace('"mine"', '"bias"'),
    ): "--plugin mine: the method bias already exists; rename it",
    (
        "mine",
        MINE.replace('"mine"', '"loss"'),
    ): "--plugin mine: the method loss already exists; rename it",
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
    shown = call("train", "--plugin", "mine", "method.name=mine", "--print-config")
    Path("config.yaml").write_text(shown.out)
    plugin = shown.out.partition("plugin: ")[2].split()[0]
    methods.METHODS.known.pop("mine")
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
