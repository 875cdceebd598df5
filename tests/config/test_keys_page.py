"""docs/keys.md lists every key and preset, and is as the schema would make it now."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from moebench.config import keys_page as page
from moebench.config.compose import Composer
from moebench.config.keys_page import COMMAND, keys_page
from moebench.config.presets import shipped_conf
from moebench.config.schema import ExperimentConfig, StudyConfig
from moebench.scopes import SHIPPED

KEYS_MD = Path(__file__).parent.parent.parent / "docs" / "keys.md"


def leaves(config: Any, prefix: str = "") -> list[str]:
    """The keys of a config, found without the function that the page is made with."""
    found = []
    for each in fields(config):
        value = getattr(config, each.name)
        inner = leaves(value, f"{prefix}{each.name}.") if is_dataclass(value) else []
        found += inner or [prefix + each.name]
    return found


def rows() -> dict[str, list[str]]:
    """The cells of each key's row, from the file."""
    found = {}
    for line in KEYS_MD.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            key, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|")))
            assert key not in found
            found[key.strip("`")] = cells
    return found


def test_the_page_is_up_to_date() -> None:
    said = f"docs/keys.md is not what the schema says; make it again: {COMMAND}"
    assert KEYS_MD.read_text(encoding="utf-8") == keys_page(), said


def test_every_key_is_listed_once_and_no_other() -> None:
    study = [f"study.{key}" for key in leaves(StudyConfig()) if key != "name"]
    assert set(rows()) == {*leaves(ExperimentConfig()), *study}


def test_every_key_has_a_meaning_a_range_and_the_default_of_a_run() -> None:
    found = rows()
    assert all(meaning and allowed for meaning, _, allowed, _, _ in found.values())
    assert found["seq_len"][1] == "tokens"
    assert found["optim.beta1"][2] == "at least 0 and below 1"
    assert found["run.threads"][2:4] == ["between 1 and 1024, or null", "`null`"]
    assert found["loss.z"][4] == "ST-MoE: 0.001"


def test_a_default_that_the_page_names_can_be_typed_and_changes_nothing() -> None:
    typed = [f"{key}={cells[3].strip('`')}" for key, cells in rows().items() if key[:5] != "study"]
    assert Composer().compose(typed) == Composer().compose()


def test_every_preset_is_listed_with_what_it_is() -> None:
    presets = dict(re.findall(r"^- `(.+?)`(?: \(default\))?: (.+)$", keys_page(), re.MULTILINE))
    files = [(path.parent.name, path.stem) for path in shipped_conf().glob("*/*.yaml")]
    there = {f"{group}={name}" for group, name in files if group != "launcher"}
    there |= {f"--launcher {name}" for group, name in files if group == "launcher"}
    assert set(presets) == there | {f"scope={each.name}" for each in SHIPPED}
    assert presets["scope=micro"] == "Balance each logical micro-batch."
    assert "- `model=tiny` (default): " in keys_page()


def test_a_cell_cannot_end_its_row() -> None:
    assert page._line(["a|b", "c"]) == "| a\\|b | c |\n"


def test_the_command_prints_the_page() -> None:
    command = COMMAND.partition(" >")[0].split()
    assert command[0] == "python"
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == keys_page()
