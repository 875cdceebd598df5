"""README as the package's page shows it, without links that would lead nowhere there.

Hatchling calls this hook when it builds sdist and wheel. A link to a file of the repository becomes
absolute: to the tag of the version (`v0.2.0`), at `Repository` of `[project.urls]` in
pyproject.toml. While no URL is set there, a link becomes its words and the file's name, which the
sdist has, and a picture becomes its description.
"""

import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

sys.path.insert(0, str(Path(__file__).parent))  # hatchling loads this file alone
from links import Link, replaced


class LongDescription(MetadataHookInterface):
    """Sets the dynamic field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = metadata.get("urls", {}).get("Repository")
        readme = Path(self.root, "README.md").read_text("utf-8")
        text = described(readme, repository, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def described(readme: str, repository: str | None, tag: str) -> str:
    """The text of README for readers who have no other file.

    Args:
        repository: its address on GitHub, GitLab or the like; None: nobody knows it.
        tag: of the version there.
    """

    def elsewhere(link: Link) -> str:
        if not link.is_relative:
            return link.text
        if repository is not None:
            kind = "raw" if link.is_image else "blob"
            return link.to(f"{repository.rstrip('/')}/{kind}/{tag}/{link.target}")
        if link.is_image:
            return f"*(Picture: {link.words}.)*"
        name = f"`{link.target}`"
        return name if link.words == link.target else f"{link.words} [{name}]"

    return replaced(readme, elsewhere)
