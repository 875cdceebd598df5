"""The values that a number or a word may have, and the one check of them."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from moebench.errors import ConfigError, nearest

LARGEST = 2**32 - 1  # of any whole number


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a value may be.

    Attributes:
        low, high: the smallest and largest value, inclusive.
        above, below: bounds that the value must not reach.
        whole: whether a float must be a whole number.
        choices: the words it may be.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False
    choices: Collection[str] | None = None

    def __contains__(self, value: Any) -> bool:
        return (
            (self.choices is None or value in self.choices)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def words(self) -> str:
        """The range as errors and docs say it; "" if there is none."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"between {self.low} and {self.high}"
        bounds = (("at least", self.low), ("above", self.above), ("below", self.below))
        return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)

    def check(self, subject: str, value: Any) -> None:
        """Raise ConfigError for a value that is not finite or outside the range.

        Args:
            subject: how the error names it, as `key=value`.
        """
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{subject}: must be a finite number")
        if type(value) is int and value > LARGEST:
            raise ConfigError(f"{subject}: must be at most {LARGEST}")
        if self.whole and value != int(value):
            raise ConfigError(f"{subject}: must be a whole number")
        if value not in self:
            near = nearest(value, self.choices or ()) if isinstance(value, str) else []
            guess = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"{subject}: must be {self.words}{guess}")


def check_divides(key: str, part: int, other: str, total: int) -> None:
    """Raise ConfigError unless `part` divides `total`, naming the nearest smaller divisor."""
    if total % part:
        small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
        near = max(n for n in (*small, *(total // n for n in small)) if n <= part)
        raise ConfigError(f"{key}={part}: must divide {other}={total}; try {key}={near}")
