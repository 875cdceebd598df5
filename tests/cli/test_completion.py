"""Shell completion: the choices offered at Tab, and that bash accepts them."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.presets import KNOBS, Presets
from moebench.report import FORMATS
from moebench.scopes import SCOPES as SHIPPED_SCOPES
from tests.calls import Call

SCOPES, STUDIES = (Presets().choices(group) for group in ("scope", "study"))
Offered = Callable[[str], list[str]]


@pytest.fixture
def offered(call: Call, monkeypatch: pytest.MonkeyPatch) -> Offered:
    """Returns the choices at the end of a line, in the protocol of fish."""
    monkeypatch.setenv("_MOEBENCH_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")

    def made(line: str) -> list[str]:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        result = call()
        assert (result.code, result.err) == (0, "")
        return [word.partition("\t")[0] for word in result.out.splitlines() if word]

    return made


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("moebench tr", ["train"]),
        ("moebench data pre", ["prepare"]),
        ("moebench train --re", ["--resume"]),
        ("moebench train xyz", []),
        # keys: a single match also offers its values
        ("moebench train train.", ["train.steps=", "train.precision=", "train.eval_every="]),
        ("moebench train train.st", ["train.steps=", "train.steps=400"]),
        ("moebench train sco", ["scope=", *(f"scope={word}" for word in SCOPES)]),
        ("moebench train study", []),
        # values
        ("moebench train scope=", [f"scope={word}" for word in SCOPES]),
        ("moebench train scope=mi", ["scope=micro"]),
        ("moebench train model=tiny scope=mi", ["scope=micro"]),
        ("moebench train --resume scope=mi", ["scope=micro"]),
        ("moebench train train.precision=", ["train.precision=auto", "train.precision=fp32"]),
        ("moebench train router.renormalize=", ["router.renormalize=true"]),
        ("moebench train run.threads=", ["run.threads=null"]),
        ("moebench train seed=", ["seed=0"]),
        ("moebench train scope=micro,g", []),
        # sweeps
        ("moebench sweep scope=micro,g", ["scope=micro,global"]),
        ("moebench sweep scope=micro,mi", []),
        ("moebench sweep study=", [f"study={word}" for word in STUDIES]),
        ("moebench sweep study.size=", ["study.size=quick", "study.size=cpu", "study.size=gpu"]),
        ("moebench sweep study=demo study.size=", ["study.size=cpu"]),
        ("moebench sweep study=nope study.size=", []),
        ("moebench report --format ", list(FORMATS)),
    ],
)
def test_words_are_offered(offered: Offered, line: str, words: list[str]) -> None:
    assert offered(line)[: len(words) or None] == words


def test_every_key_and_group_is_offered(offered: Offered) -> None:
    words = {word.removesuffix("=") for word in offered("moebench train ")}
    assert words == {*KNOBS, *Presets().groups}


def test_the_presets_of_an_overlay_are_offered(offered: Offered) -> None:
    Path("mine/model").mkdir(parents=True)
    Path("mine/model/wide.yaml").write_text("# Wide, [not] `$(so)` deep.\n")
    Path("mine/model/$(date).yaml").touch()
    assert offered("moebench train --config-dir mine model=w") == ["model=wide"]
    assert not any("$" in word for word in offered("moebench train --config-dir mine model="))
    assert offered("moebench train --config-dir nope model=w") == []


def test_what_a_plugin_adds_is_offered(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SHIPPED_SCOPES, "known", dict(SHIPPED_SCOPES.known))
    monkeypatch.setattr("moebench.registry._plugins", [])
    plugin = Path(__file__).parents[2] / "examples" / "strided_scope.py"
    for command in ("train", "sweep", "bench"):
        assert offered(f"moebench {command} --plugin {plugin} scope=str") == ["scope=strided"]


def test_folders_runs_and_studies_are_offered(offered: Offered) -> None:
    for name in ("micro-s0-1", "global-s0-2", ".global.old", "$(date)-s0-3"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").touch()
    for name in ("demo-1a", "demo-2b", "other-3c"):
        Path("runs/studies", name).mkdir(parents=True)
        Path("runs/studies", name, "plan.json").touch()
    for command in ("verify", "report"):
        choices = offered(f"moebench {command} runs/")
        assert choices == offered(f"moebench {command} ") == ["runs/global-s0-2", "runs/micro-s0-1"]
    Path("runs").rename("elsewhere")
    assert offered("moebench verify ") == []
    assert offered("moebench verify --runs-dir elsewhere ") == offered("moebench verify elsewhere/")
    choices = offered("moebench report --runs-dir elsewhere --study de")
    assert choices == ["demo", "demo-1a", "demo-2b"]
    assert offered("moebench diff --runs-dir elsewhere demo-") == ["demo-1a", "demo-2b"]
    assert offered("moebench diff elsewhere/mi") == ["elsewhere/micro-s0-1"]
    assert offered("moebench train data.path=") == ["data.path=elsewhere"]


def test_a_meaning_is_one_line_that_a_shell_can_evaluate(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine/model").mkdir(parents=True)
    Path("mine/model/it.yaml").write_text(f"# \\$(date) `date` [/x] \x1b {'long ' * 99}.\n")
    monkeypatch.setenv("_MOEBENCH_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "moebench train --config-dir mine model=it")
    result = call()
    assert result.err == ""
    assert result.out.startswith("""_arguments '*: :(("model=it":"/(date) date (/x) """)
    assert result.out.count("\n") == 1
    assert not {"$", "`", "\x1b", "\\"} & {*result.out}


def test_completing_imports_nothing_heavy() -> None:
    code = (
        "import os, sys, moebench.cli\n"
        "os.environ |= {'_MOEBENCH_COMPLETE': 'complete_bash', 'COMP_CWORD': '2',\n"
        "               'COMP_WORDS': 'moebench\\ntrain\\nsco'}\n"
        "try: moebench.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'hydra', 'omegaconf', 'rich', 'tensorboard'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["scope=", *(f"scope={word}" for word in SCOPES)]


# bash splits key=value into three words unless COMP_WORDBREAKS lacks the =
IN_BASH = {
    "train scope = mi": ["micro"],
    "train scope =": SCOPES,
    "train scope=mi": ["scope=micro"],
    "train model = tiny scope = mi": ["micro"],
    "train seed = 1 train.pr": [f"train.precision={'' if n == 0 else word}" for n, word in
                                enumerate(("", "auto", "fp32", "bf16", "fp64"))],
    "sweep scope = micro,g": ["micro,global"],
    "sweep study = demo study.size = ": ["cpu"],
}  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_accepts_the_choices(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("_MOEBENCH_COMPLETE", "source_bash")
        script = call().out
    Path("bin").mkdir()
    command = Path("bin/moebench")
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m moebench.cli "$@"\n')
    command.chmod(0o755)
    lines = [script, 'PATH="$PWD/bin:$PATH"']
    for line in IN_BASH:
        words = ["moebench", *line.split(" ")]
        lines += [
            f"COMP_WORDS=({' '.join(word or '``' for word in words)}) COMP_CWORD={len(words) - 1}",
            "_moebench_completion moebench",
            'echo "${COMPREPLY[@]}"',
        ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert [word.split() for word in done.stdout.splitlines()] == list(IN_BASH.values())
