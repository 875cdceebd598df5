"""Names and numbers as protobuf and fonts take them."""

import math


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def text(value: object) -> str:
    """A name as protobuf and fonts take it: half of a surrogate pair is no text to either."""
    return str(value).encode(errors="replace").decode()


def line(name: str, most: int) -> str:
    found = "".join(each if each.isprintable() else "?" for each in name)
    return found if len(found) <= most else f"{found[: most - 1]}…"
