"""Arms whose values a search chooses: which search each has, and what it found.

An arm of a study may hold ranges, `optim.lr=1e-3..1e-2`, which `moebench tune` searches. A control
holds `optim.lr=tuned`: it has the values of the last arm above it that has ranges of these keys.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from moebench.config.compose import Composer
from moebench.config.interval import Interval
from moebench.config.schema import StudyConfig
from moebench.config.zipped import keys_of
from moebench.errors import ConfigError
from moebench.plans import Searched
from moebench.searches import Found, Space, best

Cell = tuple[str, ...]  # the overrides of one run
TUNED = "tuned"
RUNS = Path("runs")
S = TypeVar("S", bound=Space)


class Row(NamedTuple):
    """A run of a plan, and the overrides of the search that chooses its values; () without one."""

    cell: Cell
    search: Cell


def sources(arms: Sequence[Cell]) -> list[Cell]:
    """The arm whose ranges choose the values of each: itself, or one above it; () for none.

    Raises ConfigError for a control below no such arm.
    """
    found: list[Cell] = []
    for place, arm in enumerate(arms):
        ranged = {word for word in arm if Interval.read(word)}
        wanted = {keys_of(word)[0] for word in arm if word.endswith(f"={TUNED}")}
        if not wanted:
            found.append(arm if ranged else ())
            continue
        above = [other for other in arms[:place] if wanted <= _ranged_keys(other)]
        if ranged or not above:
            keys = ", ".join(sorted(wanted))
            raise ConfigError(f"study.arms={' '.join(arm)}: no arm above has ranges of {keys}")
        found.append(above[-1])
    return found


def _ranged_keys(arm: Cell) -> set[str]:
    return {interval.key for word in arm if (interval := Interval.read(word))}


def searched_keys(arm: Cell) -> set[str]:
    """The keys of an arm that a search chooses, its own or that of an arm above."""
    return {keys_of(word)[0] for word in arm if _is_searched(word)}


def _is_searched(word: str) -> bool:
    return Interval.read(word) is not None or word.endswith(f"={TUNED}")


def without_seed(words: Iterable[str]) -> Cell:
    return without({"seed"}, words)


def without(keys: set[str], words: Iterable[str]) -> Cell:
    """The words that set more than some keys."""
    return tuple(word for word in words if not keys.issuperset(keys_of(word)))


class Searches:
    """The searches of a study's arms.

    Args:
        typed: words after `moebench sweep` or `tune` that choose the study, without options.
        rows: the runs.

    Attributes:
        words: the overrides of each search.
        trials: of each, as the study says; None if it says nothing for its size.
    """

    def __init__(
        self,
        composer: Composer,
        study: StudyConfig,
        typed: Sequence[str],
        rows: Sequence[Row],
        runs_dir: Path = RUNS,
    ) -> None:
        self._composer, self._study = composer, study
        self._typed, self._rows, self._runs_dir = without_seed(typed), rows, runs_dir
        self.words = list(dict.fromkeys(row.search for row in rows if row.search))
        self.trials = study.trials.get(study.size)

    def spaces(self, kind: type[S] = Space) -> dict[Cell, S]:
        """What each search looks through, by its overrides.

        Raises ConfigError for a range that cannot be searched.
        """
        seeds = self._study.trial_seeds
        return {words: kind(self._composer, words, seeds, self._runs_dir) for words in self.words}

    def command(self, trials: int | None = None) -> str:
        """The command that makes the trials, or so many of them."""
        more = [] if trials in (None, self.trials) else ["--trials", str(trials)]
        return shlex.join(["moebench", "tune", *self._typed, *more, *self._places()])

    def next_command(self) -> str:
        """The command that trains the arms with what was found."""
        return shlex.join(["moebench", "sweep", *self._typed, *self._places()])

    def _places(self) -> list[str]:
        """The options that name folders."""
        overlay = [] if len(self._composer.roots) < 2 else [str(self._composer.roots[1])]
        runs_dir = [] if self._runs_dir == RUNS else [str(self._runs_dir)]
        return [
            *(word for path in overlay for word in ("--config-dir", path)),
            *(word for path in runs_dir for word in ("--runs-dir", path)),
        ]

    def chosen(self) -> dict[Cell, tuple[Cell, Searched]]:
        """The overrides of each run with its values, and how they were found.

        Raises ConfigError where searches were not made, or not by the same number of trials, and
        for a seed of trials.
        """
        if not self.words:
            return {}
        spaces = self.spaces()
        found = {words: space.found() for words, space in spaces.items()}
        known = self._checked(found)
        chosen = {}
        for row in self._rows:
            if row.search:
                self._check_seed(row.cell, spaces[row.search].seeds)
                about = _searched(spaces[row.search], known[row.search])
                chosen[row.cell] = _filled(row.cell, about.values), about
        return chosen

    def _checked(self, found: Mapping[Cell, Found | None]) -> dict[Cell, Found]:
        known = {words: trials for words, trials in found.items() if trials is not None}
        subject = f"study={self._study.name}"
        if not known:
            raise ConfigError(
                f"{subject}: no trial has chosen the values of its arms yet; run {self.command()}"
            )
        needed = max(max(each.asked, len(each.trials)) for each in known.values())
        for words in found:
            made = len(known[words].trials) if words in known else 0
            name = self.name(words)
            if made < needed:
                raise ConfigError(
                    f"{subject}: {name} has {made} of {needed} trials, and each arm needs the same "
                    f"number; complete them by {self.command(needed)}"
                )
            if best(known[words].trials) is None:
                raise ConfigError(
                    f"{subject}: none of {made} trials of {name} could be trained; correct its "
                    "ranges"
                )
        return known

    def name(self, words: Cell) -> str:
        """A search in words: what no other search of the study has, without ranges."""
        shared = set.intersection(*map(set, self.words)) if len(self.words) > 1 else set()
        own = [word for word in words if word not in shared and not Interval.read(word)]
        return " ".join(own) or self._study.name

    def _check_seed(self, cell: Cell, seeds: range) -> None:
        seed = self._composer.settings(w for w in cell if keys_of(w) == ("seed",)).get("seed", 0)
        if seed in seeds:
            raise ConfigError(
                f"seed={seed}: trials of study={self._study.name} used it; take seeds below "
                f"{seeds.start}"
            )


def _searched(space: Space, found: Found) -> Searched:
    winner = best(found.trials)
    assert winner is not None
    assert winner.value is not None
    return Searched(
        name=space.name,
        arms=(),
        ranges=space.ranges,
        trials=len(found.trials),
        failed=sum(trial.value is None for trial in found.trials),
        seeds=tuple(space.seeds),
        values=winner.words,
        result=winner.value,
        journal=found.journal,
    )


def _filled(cell: Cell, values: str) -> Cell:
    """A run's overrides with values in the place of ranges."""
    known = {keys_of(word)[0]: word for word in values.split()}
    return tuple(known[keys_of(word)[0]] if _is_searched(word) else word for word in cell)
