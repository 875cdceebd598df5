"""Looks of a stopping rule: after how many seeds a study may end, and at which level each tests.

A study of at most N seeds is looked at after N / 4, N / 2 and N of them. What is decided at a look
is tested at the level of that look. The levels add up to 5 %, so a study errs in at most 5 %,
however the looks depend on each other (a union bound). The paired t is exact at every look: which
seeds are there is fixed beforehand.

Source: Lan and DeMets 1983, Biometrika 70:659, who spend an error over looks.
"""

from typing import NamedTuple

from moebench.errors import ConfigError

LEVELS = (0.005, 0.010, 0.035)
PARTS = (4, 2, 1)  # the N over which each look divides the most seeds
FEWEST = 12  # most seeds of a study: its first look has three, the fewest with an interval
MOST = 16  # seeds where nothing is said


class Look(NamedTuple):
    """A look at a study.

    Attributes:
        number: counted from 1.
        of: looks of the study.
        seeds: that it has, the first ones of the study.
        most: seeds of the study's last look.
        level: of all tests at this look together.
    """

    number: int
    of: int
    seeds: int
    most: int
    level: float

    def __str__(self) -> str:
        return f"look {self.number} of {self.of}, {self.seeds} of at most {self.most} seeds"


def looks(most: int, named: str = "--most-seeds") -> tuple[Look, ...]:
    """The looks at a study of at most so many seeds.

    Args:
        named: what was typed for them.

    Raises:
        ConfigError: where the looks are not whole.
    """
    if most < FEWEST or most % PARTS[0]:
        raise ConfigError(
            f"{named}: {most} seeds; a study that ends by rule takes a multiple of {PARTS[0]}, at "
            f"least {FEWEST}, so that its first look has three"
        )
    return tuple(
        Look(number, len(PARTS), most // part, most, level)
        for number, (part, level) in enumerate(zip(PARTS, LEVELS, strict=True), 1)
    )


def reached(most: int, begun: int) -> Look:
    """The first look that has as many seeds as have begun; the last one if there are more."""
    all_looks = looks(most)
    return next((look for look in all_looks if begun <= look.seeds), all_looks[-1])
