"""The generated parts of docs are up to date: every module with its caption, every method."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREE = runpy.run_path(str(ROOT / "docs" / "tree.py"))
METHODS = runpy.run_path(str(ROOT / "docs" / "methods_table.py"))
MODULES = sorted(path for path in (ROOT / "moebench").rglob("*.py") if path.stat().st_size)


def test_the_page_is_up_to_date() -> None:
    page = TREE["PAGE"].read_text(encoding="utf-8")
    assert page == TREE["updated"](page), "run `python docs/tree.py`"


def test_the_table_of_methods_is_up_to_date_and_names_tests_that_exist() -> None:
    page = METHODS["PAGE"].read_text(encoding="utf-8")
    assert page == METHODS["updated"](page), "run `python docs/methods_table.py`"
    tests = re.findall(r"`(test_\w+\.py)`", METHODS["generated"]())
    assert len(tests) > 10
    assert all((ROOT / "tests" / "balance" / name).is_file() for name in tests)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_has_a_caption(path: Path) -> None:
    assert TREE["caption"](path).endswith((".", "?"))


def test_the_caption_is_the_first_sentence_of_the_docstring(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""One caption\nover two lines. A second sentence.\n\nMore.\n"""\n')
    assert TREE["caption"](module) == "One caption over two lines."


def test_every_layer_names_modules_that_exist() -> None:
    for name in (name for layer in TREE["layers"]() for name in layer):
        module = ROOT / "moebench" / name.replace(".", "/")
        assert module.is_dir() or module.with_suffix(".py").is_file(), name


def test_the_walk_names_functions_that_exist() -> None:
    walk = re.findall(r"^\| \d+ \| `(\S+)` \| `(\w+)` \|", TREE["PAGE"].read_text(), re.MULTILINE)
    assert len(walk) > 10
    for path, name in walk:
        assert re.search(rf"^ *(def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE), path
