"""Build the documentation site from docs/, README, help texts and docstrings of public modules.

    python docs/build_site.py [SITE]

In a Markdown file, links to other files are relative to it, so that they work where the repository
is shown. On the site they lead to the page of the file. A linked file that is no page, such as a
notebook, is copied as it is. A link that leads nowhere, or to no heading, is an error.
"""

import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from links import Link, replaced

ROOT = Path(__file__).parent.parent
# files of the repository that are pages beside docs/*.md
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
# pages of the Python API: title and modules
API = {
    "balance": ("Balance losses", ["moebench.balance"]),
    "hooks": ("Hooks on any model", ["moebench.hooks"]),
    "conform": ("Conformance", ["moebench.conform"]),
    "metrics": (
        "Metrics of a routing",
        [f"moebench.metrics.{name}" for name in ("load", "specialization", "expert_parallel")],
    ),
    "report": ("Records and reports", ["moebench.report", "moebench.report.read.frame"]),
    "experiment": (
        "Configs and runs",
        ["moebench.config.compose", "moebench.data.corpus", "moebench.experiment"],
    ),
    "declarations": (
        "Declarations",
        [
            *("moebench.scopes", "moebench.methods", "moebench.registry"),
            *("moebench.catalogue", "moebench.catalogue.metric", "moebench.config.knob"),
        ],
    ),
    "errors": ("Errors", ["moebench.errors"]),
}


class BrokenLinkError(Exception):
    """A link to a file that does not exist."""


def on_page(text: str, path: Path, page: str, on_the_site: Callable[[Path], str]) -> str:
    """The text of a file of the repository, with links as its page on the site needs them.

    Args:
        path: of the file.
        page: of the site.
        on_the_site: where a linked file lies on the site.

    Raises:
        BrokenLinkError: for a link to a file that does not exist.
    """

    def moved(link: Link) -> str:
        if not link.is_relative:
            return link.text
        target = (path.parent / link.target).resolve()
        if not target.is_file() or ROOT not in target.parents:
            raise BrokenLinkError(f"{path.relative_to(ROOT)}: {link.target} is no file")
        return link.to(posixpath.relpath(on_the_site(target), posixpath.dirname(page)))

    return replaced(text, moved)


def write_sources(folder: Path) -> None:
    """Write the Markdown of all pages, and what they show, into an empty folder."""
    pages = {ROOT / name: page for name, page in PAGES.items()}
    pages |= {path: path.name for path in (ROOT / "docs").glob("*.md")}

    def on_the_site(path: Path) -> str:
        """Where a file of the repository lies on the site."""
        if path in pages:
            return pages[path]
        name = path.relative_to(ROOT).as_posix().removeprefix("docs/")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        return name

    for path, page in pages.items():
        text = on_page(path.read_text("utf-8"), path, page, on_the_site)
        (folder / page).write_text(text, "utf-8")
    shutil.copy(ROOT / "docs" / "site.css", folder)
    (folder / "commands.md").write_text(_commands(), "utf-8")
    (folder / "api").mkdir()
    for name, (title, modules) in API.items():
        text = f"# {title}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        (folder / "api" / f"{name}.md").write_text(text, "utf-8")


def _commands() -> str:
    """The help of every command, without the list of their cut first sentences."""
    words = ["moebench.cli", "utils", "docs", "--name", "moebench", "--title", "Commands"]
    text = subprocess.check_output([sys.executable, "-m", "typer", *words], cwd=ROOT, text=True)
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)


def _project() -> dict[str, Any]:
    """What pyproject.toml says of the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_sources(Path(folder))
        except BrokenLinkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        # not --quiet, under which --strict misses warnings
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
        env = {**os.environ, "DOCS_SOURCES": folder, "NO_MKDOCS_2_WARNING": "1"}
        if (repository := _project().get("urls", {}).get("Repository")) is not None:
            env["DOCS_REPOSITORY"] = repository
        done = subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    told = [line for line in done.stderr.splitlines() if line and not line.startswith("INFO")]
    print(*told, sep="\n", end="\n" if told else "", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
