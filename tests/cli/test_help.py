"""Help: every command has an example, and help imports nothing heavy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calls import Call

COMMANDS = [
    *("train", "sweep", "report", "diff", "evaluate", "inspect", "dashboard", "verify", "bench"),
    *("watch", "conform", "doctor", "export", "sample"),
    *("data prepare", "data show", "data check"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(call: Call, command: str) -> None:
    result = call(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert re.search(rf"Examples?:\s+moebench {command}\b", result.out)
    assert max(map(len, result.out.splitlines())) <= 80


def test_the_examples_parse(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in COMMANDS:
        text = " ".join(call(*command.split(), "--help").out.split())
        examples = re.search(r"Examples?: (.*?) ╭", text)
        assert examples
        for example in examples[1].split(", moebench "):
            words = example.removeprefix("moebench ").split()
            overrides = [word for word in words if "=" in word and not word.startswith("data.path")]
            if words[0] == "train":
                assert call(*words, "--print-config").code == 0
            elif overrides and words[0] == "data":
                assert overrides == ["data=folder"]


def test_help_lists_all_commands_and_the_exit_codes(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    for command in {command.split()[0] for command in COMMANDS}:
        assert re.search(rf"│ {command} ", result.out)
    assert "75 stopped by SIGTERM" in " ".join(result.out.split())
    assert call().out.split() == result.out.split()
    assert (call().code, call().err) == (2, "")
    assert call("--version").out.startswith("moebench 0.")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, moebench.cli\n"
        "sys.argv = ['moebench', 'train', '--help']\n"
        "try: moebench.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'hydra', 'omegaconf', 'tensorboard', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_printing_a_config_imports_no_torch() -> None:
    code = (
        "import sys, moebench.cli\n"
        "sys.argv = ['moebench', 'train', '--print-config']\n"
        "try: moebench.cli.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_command_is_installed() -> None:
    script = shutil.which("moebench", path=Path(sys.executable).parent)
    assert script
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("moebench ")
