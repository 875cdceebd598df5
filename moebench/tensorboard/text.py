"""Names and numbers that protobuf and fonts accept."""

import math


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def text(value: object) -> str:
    """A name without lone surrogates, which neither protobuf nor fonts accept."""
    return str(value).encode(errors="replace").decode()


def line(name: str, most: int) -> str:
    """A name in one line of at most `most` characters."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
