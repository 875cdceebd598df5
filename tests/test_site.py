"""The documentation site builds without a warning, and its pages show what they should."""

import html
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moebench.balance
import moebench.hooks

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, str(ROOT / "docs" / "build_site.py"), str(folder)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def article(page: Path) -> str:
    """What a page says, without its navigation."""
    [found] = re.findall(r"<article.*?</article>", page.read_text("utf-8"), re.DOTALL)
    return found


def test_each_page_of_docs_and_readme_is_on_it(site: Path) -> None:
    names = {path.stem for path in (ROOT / "docs").glob("*.md")}
    names |= {"index", "contributing", "changelog", "security", "benchmarks", "commands", "404"}
    assert {path.stem for path in site.glob("*.html")} == names
    assert "Over which tokens should a Mixture-of-Experts" in article(site / "index.html")
    assert (site / "img" / "domains-and-experts.png").is_file()
    assert (site / "examples" / "own_data.ipynb").is_file()


def test_the_reference_has_every_public_name_and_command(site: Path) -> None:
    for module in (moebench.balance, moebench.hooks):
        page = article(site / "api" / f"{module.__name__.split('.')[1]}.html")
        for name in module.__all__:
            assert f'id="{module.__name__}.{name}"' in page
    assert 'id="moebench-sweep"' in article(site / "commands.html")


def test_no_page_shows_markdown(site: Path) -> None:
    """GitHub takes blocks in lists that Python-Markdown does not."""
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":
            continue
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", article(page), flags=re.DOTALL)
        for words in re.findall(r"<(?:p|li|td)\b[^>]*>(.*?)</(?:p|li|td)>", text, re.DOTALL):
            shown = html.unescape(re.sub(r"<[^>]+>", "", words))
            markup = re.search(r"^\s*[-*] |`|\]\(|^\|.*\|$", shown, re.MULTILINE)
            assert markup is None, (page.name, shown)


def test_no_page_asks_the_network_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="([^"]*)"', page.read_text())
        assert [address for address in loaded if "//" in address] == []


def test_links_lead_to_the_pages_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    site = importlib.import_module("build_site")
    path = ROOT / "docs" / "new.md"
    places = {ROOT / "README.md": "index.md", ROOT / "docs" / "data.md": "data.md"}
    text = (
        "[a](../README.md#usage) ![b c](data.md) [d](#here) [e](https://e.org)\n```\n[f](g)\n```\n"
    )
    text += '<img src="data.md" alt="f" width="9">\n'
    shown = site.on_page(text, path, "api/new.md", places.__getitem__)
    assert shown == text.replace("data.md", "../data.md").replace("README.md", "index.md")
    with pytest.raises(site.BrokenLinkError, match=r"docs/new\.md: absent\.md is no file"):
        site.on_page("[a](absent.md)", path, "new.md", places.__getitem__)
    with pytest.raises(site.BrokenLinkError, match="passwd"):
        site.on_page("[a](../../../../../etc/passwd)", path, "new.md", places.__getitem__)


def test_a_link_to_no_heading_fails(tmp_path: Path) -> None:
    settings = f"INHERIT: {ROOT / 'mkdocs.yml'}\nnav: [index.md]\nplugins: []\n"
    (tmp_path / "mkdocs.yml").write_text(settings)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text("# A\n\n[a](#a) [b](#b)\n")
    env = {**os.environ, "DOCS_SOURCES": str(tmp_path / "pages"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("there is no such anchor") == 1, done.stderr
