"""Ranges of a key's values, which a search looks through: `key=low..high`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moebench.config.presets import KNOBS
from moebench.errors import ConfigError

DIGITS = 4  # significant ones of a value, so that the printed one is the one that was trained
NUMBER = r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"([\w.]+)=({NUMBER})\.\.({NUMBER})(?::(log|linear))?")


@dataclass(frozen=True)
class Interval:
    """The values that a key may take.

    Attributes:
        log: whether factors count, and not differences.
        whole: whether they are whole numbers.
    """

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def read(cls, word: str) -> "Interval | None":
        """The interval that `key=low..high`, `:log` or `:linear` describes; None for other words.

        Without the last part, an interval over a factor of 10 or more counts factors.

        Raises ConfigError for one that is empty, or has a logarithm of what is not above 0.
        """
        match = RANGE.fullmatch(word)
        if match is None:
            return None
        key, low, high, how = match[1], float(match[2]), float(match[3]), match[4]
        if not low < high:
            raise ConfigError(f"{word}: holds no values; write the smaller number first")
        if how == "log" and low <= 0:
            raise ConfigError(f"{word}: must begin above 0, or end with :linear")
        whole = key in KNOBS and KNOBS[key].type in (int, int | None)
        return cls(key, low, high, how == "log" or (not how and 0 < 10 * low <= high), whole)

    def word(self, value: float) -> str:
        """The override that sets the key to a value."""
        return f"{self.key}={round(value)}" if self.whole else f"{self.key}={value:.{DIGITS}g}"

    def wrote(self, word: str) -> bool:
        """Whether `word` could have made an override."""
        key, _, value = word.partition("=")
        number = float(value) if re.fullmatch(NUMBER, value) else math.inf
        return key == self.key and math.isfinite(number) and self.word(number) == word

    def at(self, share: float) -> float:
        """The value that is so far from the low end to the high one, from 0 to 1."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + share * (self.high - self.low)

    def share(self, value: float) -> float:
        """The inverse of `at`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ask(self, trial: Any) -> str:
        """The override that a trial of Optuna chooses."""
        suggest: Callable[..., float] = trial.suggest_int if self.whole else trial.suggest_float
        ends = [(round if self.whole else float)(end) for end in (self.low, self.high)]
        return self.word(suggest(self.key, *ends, log=self.log))
