"""Links of a Markdown text: where they are, and the same text with others in their place."""

import re
from collections.abc import Callable
from typing import NamedTuple

CODE = re.compile(r"(^ *(`{3,})[^\n]*\n.*?^ *\2`*[ ]*$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
PICTURE = re.compile(r'<img src="([^"]+)" alt="([^"]*)"[^<>]*>')


class Link(NamedTuple):
    """`[words](target#anchor)`; the anchor begins with its `#`, or is "".

    A picture that needs a width is `<img src="target" alt="words" width="...">`.
    """

    text: str
    is_image: bool
    words: str
    target: str
    anchor: str

    @property
    def is_relative(self) -> bool:
        """Whether it leads to another file of the repository."""
        return bool(self.target) and not re.match(r"[a-z]+:|/", self.target)

    def to(self, target: str) -> str:
        """The same link to another target."""
        if self.text.startswith("<"):
            return self.text.replace(f'"{self.target}"', f'"{target}"', 1)
        return f"{'!' if self.is_image else ''}[{self.words}]({target}{self.anchor})"


def replaced(text: str, replacement: Callable[[Link], str]) -> str:
    """The text with each link outside code blocks replaced."""

    def of(match: re.Match[str]) -> str:
        target, mark, anchor = match[3].partition("#")
        return replacement(Link(match[0], bool(match[1]), match[2], target, mark + anchor))

    def in_prose(part: str) -> str:
        part = PICTURE.sub(lambda of: replacement(Link(of[0], True, of[2], of[1], "")), part)
        return LINK.sub(of, part)

    parts = CODE.split(text)  # prose, a block, its fence, prose, ...
    return "".join(
        in_prose(part) if at % 3 == 0 else part for at, part in enumerate(parts) if at % 3 != 2
    )
