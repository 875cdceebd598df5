"""What commands print: data on stdout, messages and errors on stderr."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 400  # characters of a word in an error
SCHEMA_VERSION = 1  # of everything that --json prints


def print_json(content: Mapping[str, Any]) -> None:
    """Print a JSON object to stdout, with its schema version first.

    JSON has no NaN and no infinity: such a number becomes null.
    """
    from moebench.disk import finite  # here, so that --help is fast

    whole = {"schema_version": SCHEMA_VERSION, **content}
    print(json.dumps(finite(whole), indent=2, allow_nan=False))


def stdout_console() -> "Console":
    """The console for tables on stdout."""
    from rich.console import Console

    return Console()


def stderr_console() -> "Console":
    """The console for everything that is not data."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_message(text: str, console: "Console | None" = None) -> None:
    """Print one line to stderr, without interpreting markup and without control characters."""
    from moebench.records import printable

    (console or stderr_console()).print(printable(text), markup=False, soft_wrap=True)


def print_address(url: str, *, as_json: bool) -> None:
    """Print the address of a page that is served until Ctrl-C."""
    if as_json:
        print_json({"url": url})
    else:
        print(url)
    print(end="", flush=True)  # a program that reads it does not wait for the end
    print_message("open it in a browser; press Ctrl-C to stop")


def print_error(text: str) -> None:
    """Print `error: text` as one line to stderr. It uses no other module, so it cannot fail."""
    line = " ".join(map(_shortened, text.split()))
    line = "".join(char if char.isprintable() else "?" for char in line)
    print(f"error: {line}", file=sys.stderr)


def _shortened(word: str) -> str:
    """A word without its middle, if it is a value that nobody reads to the end."""
    left_out = len(word) - LONGEST
    if left_out <= 0:
        return word
    return f"{word[: LONGEST // 2]}[{left_out} characters]{word[-LONGEST // 2 :]}"
