"""Each worked example of docs/extending.md runs on a copy of the tree."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.doc_pages import (
    ROOT,
    blocks,
    commands,
    named_files,
    run_python,
    shrink,
    write_files,
)

SECTIONS = {
    section.partition("\n")[0]: section
    for section in re.split(r"^## ", (ROOT / "docs" / "extending.md").read_text(), flags=re.M)[1:]
}


def apply(diff: str, tree: Path) -> None:
    """Apply a diff whose hunks have no line numbers: each must match at exactly one place."""
    header, *hunks = re.split(r"^@@.*\n", diff, flags=re.M)
    path = tree / header.removeprefix("--- ").strip()
    text = path.read_text()
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path.name} has {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of moebench and conf with the files and diffs of all examples."""
    place = tmp_path_factory.mktemp("tree")
    for folder in ("moebench", "conf"):
        shutil.copytree(ROOT / folder, place / folder)
    for section in SECTIONS.values():
        write_files(section, place)
        for diff in blocks(section, "diff"):
            apply(diff, place)
    return place


EACH_IN_A_FORK = """
import json, os, sys
import moebench.experiment, moebench.report
from moebench.cli import main

for words in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        sys.argv = ["moebench", *words]
        main()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {words}")
"""


def run_there(arguments: list[str], tree: Path) -> None:
    run_python(arguments, tree, {**os.environ, "PYTHONPATH": str(tree)})


def test_the_tests_of_the_examples_pass(tree: Path) -> None:
    tests = [
        name
        for section in SECTIONS.values()
        for name, _ in named_files(section)
        if name.startswith("test_")
    ]
    assert len(tests) == len(SECTIONS)
    run_there(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], tree)


def test_the_commands_of_the_examples_run(tree: Path, text_folder: Path) -> None:
    typed = [each for section in SECTIONS.values() for each in commands(section)]
    words = [shrink(shlex.split(command)[1:], text_folder) for command in typed]
    run_there(["-c", EACH_IN_A_FORK, json.dumps(words)], tree)


def test_the_scope_of_the_page_is_the_one_in_examples() -> None:
    files = {name: text for section in SECTIONS.values() for name, text in named_files(section)}
    name = "examples/strided_scope.py"
    assert files[name] == (ROOT / name).read_text()


def test_each_example_has_a_command() -> None:
    assert SECTIONS
    assert all(commands(section) for section in SECTIONS.values())
