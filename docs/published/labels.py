"""Where words stand in a picture so that they cover as little as can be: boxes, in pixels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

NARROW = frozenset(" .,:;'()|filjtI-")
WIDE, SLIM = 0.56, 0.31  # of the size of a font: characters
POINT, STEP = 6.0, 3.0  # half of a point with its rim, and between the boxes of a line
COSTS = {"line": 1.0, "point": 4.0, "words": 8.0, "near": 0.1, "outside": 20.0}  # of a pixel
GAP, RIM, APART = 8.0, 4.0, 12.0  # to the point of words; around words; to lines of other names
Place = tuple[float, float]


class Box(NamedTuple):
    """Its sides."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """The area of both."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


def size_of(lines: Sequence[str], font: float, height: float) -> Place:
    """About how wide and high words are.

    Args:
        font, height: of a character and of a line.
    """
    widths = [sum(SLIM if of in NARROW else WIDE for of in line) for line in lines]
    return font * max(widths) + RIM, height * len(lines) + RIM * (len(lines) > 1)


def around(at: Place, size: Place) -> list[Place]:
    """The upper left corners of words beside a point, the usual ones first."""
    (x, y), (wide, high) = at, size
    middle, near = y - high / 2, GAP / 2
    right, left = x + GAP, x - GAP - wide
    above, below = y - GAP - high + 2, y + GAP - 2
    return [
        *((right, middle), (x - wide / 2, above), (left, middle), (x - wide / 2, below)),
        *((x + near, above + 2), (x - near - wide, below - 2)),
        *((x - near - wide, above + 2), (x + near, below - 2)),
    ]


@dataclass
class Room:
    """A picture, and what must not be covered.

    Attributes:
        wide, high: of the picture.
        taken: boxes, with what it costs to cover a pixel of them.
    """

    wide: float
    high: float
    taken: list[tuple[Box, float]] = field(default_factory=list)

    def point(self, x: float, y: float) -> None:
        box = Box(x - POINT, y - POINT, x + POINT, y + POINT)
        self.taken.append((box, COSTS["point"]))

    def line(self, one: Place, other: Place) -> None:
        self.taken += [(box, COSTS["line"]) for box in _along(one, other, STEP / 2)]

    def place(
        self, size: Place, corners: Iterable[Place], far: Iterable[tuple[Place, Place]] = ()
    ) -> Place:
        """The upper left corner, of some, that covers least, the first of equals; it is taken.

        Args:
            size: wide and high.
            far: lines that these words are not about, to which they keep a distance.
        """
        near = [(box, COSTS["near"]) for ends in far for box in _along(*ends, APART)]

        def cost(box: Box) -> float:
            inside = box.shared(Box(RIM, 0.0, self.wide - RIM, self.high))
            area = (box.right - box.left) * (box.bottom - box.top)
            covered = sum(box.shared(of) * each for of, each in self.taken + near)
            return covered + (area - inside) * COSTS["outside"]

        best = min((Box(x, y, x + size[0], y + size[1]) for x, y in corners), key=cost)
        self.taken.append((best, COSTS["words"]))
        return best.left, best.top


def _along(one: Place, other: Place, half: float) -> Iterable[Box]:
    """Boxes along a line."""
    parts = math.ceil(math.dist(one, other) / STEP) or 1
    for part in range(parts + 1):
        x, y = (a + (b - a) * part / parts for a, b in zip(one, other, strict=True))
        yield Box(x - half, y - half, x + half, y + half)
