"""What a package index, a citation and GitHub's forms show of moebench."""

import email
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from readme_renderer.markdown import render

import moebench
from tests.doc_pages import workflow_scripts

ROOT = Path(__file__).parent.parent
URL = "https://git.example.org/me/moebench"
TAG = f"v{moebench.__version__}"

Described = Callable[[str], tuple[str, list[str]]]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Described:
    """Builds a wheel of little code, whose urls are those of a table; its description and links."""

    def built(urls: str) -> tuple[str, list[str]]:
        place = tmp_path_factory.mktemp("package")
        for name in ("LICENSE", "README.md", "moebench/__init__.py", "docs/links.py"):
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, place / name)
        shutil.copy(ROOT / "docs" / "long_description.py", place / "docs")
        (place / "conf").mkdir()
        project = (ROOT / "pyproject.toml").read_text()
        project = re.sub(
            r"^\[project\.urls\]\n(?:[^\[].*)?(?:\n(?!\[).*)*", "", project, flags=re.M
        )
        (place / "pyproject.toml").write_text(f"{project}\n{urls}")
        python = [sys.executable, "-m"]
        build = [*python, "build", "--wheel", "--no-isolation", "--outdir", "dist"]
        subprocess.run(build, cwd=place, check=True, capture_output=True)
        [wheel] = (place / "dist").iterdir()
        checked = subprocess.run(
            [*python, "twine", "check", "--strict", str(wheel)], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout
        with zipfile.ZipFile(wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("METADATA")]
            metadata = email.message_from_bytes(archive.read(name))
        assert metadata["Description-Content-Type"] == "text/markdown"
        text = metadata.get_payload(decode=True).decode()  # pyright: ignore
        page = render(text)
        assert page is not None
        return text, re.findall(r'(?:href|src)="([^"]*)"', page)

    return built


def test_without_a_url_files_are_named_and_no_link_is_relative(described: Described) -> None:
    text, links = described("")
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "[study](docs/recipes.md)" in (ROOT / "README.md").read_text()
    assert "study [`docs/recipes.md`]" in text
    assert "- `CONTRIBUTING.md` describes" in text
    assert re.search(r"^\*\(Picture: Validation loss against .*\.\)\*$", text, re.M)


def test_with_a_url_links_lead_to_the_files_of_the_version(described: Described) -> None:
    _, links = described(f'[project.urls]\nRepository = "{URL}"\n')
    own = [link.removeprefix(f"{URL}/").split("#")[0] for link in links if link.startswith(URL)]
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert f"blob/{TAG}/docs/recipes.md" in own
    pictures = {link for link in own if link.startswith(f"raw/{TAG}/docs/img/")}
    assert f"raw/{TAG}/docs/img/domains-and-experts.png" in pictures
    assert len(pictures) == 2
    for link in own:
        _, tag, name = link.split("/", 2)
        assert tag == TAG
        assert (ROOT / name).is_file()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == moebench.__version__
    dated = f"## [{citation['version']}] - {citation['date-released']}\n"
    assert dated in (ROOT / "CHANGELOG.md").read_text()


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_takes(path: Path) -> None:
    """By https://docs.github.com/communities ("Syntax for GitHub's form schema")."""
    form = yaml.safe_load(path.read_text())
    assert set(form) == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        more = {"textarea": {"render"}, "input": set(), "dropdown": {"options"}}[field["type"]]
        assert {"label"} <= set(field["attributes"]) <= {"label", "description", *more}
        assert set(field.get("validations", ())) <= {"required"}
    for name in re.findall(r"docs/[\w.]+\w", path.read_text()):
        assert (ROOT / name).is_file()


def test_the_steps_of_the_example_workflow_are_shell() -> None:
    """The tests of docs run its moebench commands."""
    scripts = workflow_scripts()
    assert any("moebench sweep" in script for script in scripts)
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
