"""From typed words and a study to the overrides of each run, without what is left out."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from moebench.config.compose import Composer
from moebench.config.presets import DEFAULT_STUDY, STUDY
from moebench.config.schema import StudyConfig
from moebench.config.zipped import keys_of
from moebench.disk import is_name
from moebench.errors import ConfigError, apply_to_all
from moebench.plans import Searched
from moebench.study.tuned import (
    RUNS,
    Cell,
    Row,
    Searches,
    searched_keys,
    sources,
    without,
    without_seed,
)


class Axes(NamedTuple):
    """What is typed of a sweep beside its overrides.

    Attributes:
        seeds: every arm has the seeds from 0 to this number minus 1; None: as the overrides say.
        name: of a grid.
        exclude: runs that are left out: overrides separated by blanks, all of which a run has.
    """

    seeds: int | None = None
    name: str | None = None
    exclude: tuple[str, ...] = ()

    def options(self) -> Iterable[str]:
        """The same as options of `moebench sweep`."""
        if self.seeds is not None:
            yield from ("--seeds", str(self.seeds))
        if self.name is not None:
            yield from ("--name", self.name)
        for text in self.exclude:
            yield from ("--exclude", text)


NO_AXES = Axes()


def cells_of(
    composer: Composer, overrides: Sequence[str], axes: Axes = NO_AXES, runs_dir: Path = RUNS
) -> tuple[StudyConfig | None, list[Cell], dict[Cell, Searched]]:
    """What the overrides and axes describe.

    Args:
        runs_dir: that holds the trials of a study whose arms have ranges.

    Returns:
        The study, None for a grid; the overrides of each run; and of those with values that a
        search chose, how it did.
    """
    of_runs, of_study = _parted(overrides)
    is_grid = any(map(composer.is_sweep, of_runs)) and not of_study
    of_runs += _seeds(axes, of_runs)
    if is_grid:
        _check_name(composer, axes)
        return None, _leave_out(composer, composer.expand(of_runs), axes.exclude), {}
    study, rows = _rows(composer, of_runs, of_study)
    if axes.name:
        raise ConfigError(
            f"--name {axes.name}: study={study.name} has its own name; leave it out, or sweep over "
            "lists of values without study="
        )
    searches = Searches(composer, study, overrides, rows, runs_dir)
    chosen = searches.chosen()
    cells = [chosen[row.cell][0] if row.cell in chosen else row.cell for row in rows]
    cells = _leave_out(composer, cells, study.exclude, must_match=False)
    return study, _leave_out(composer, cells, axes.exclude), dict(chosen.values())


def searches_of(composer: Composer, overrides: Sequence[str], runs_dir: Path = RUNS) -> Searches:
    """The searches of the study that the overrides name; ConfigError if its arms need none."""
    study, rows = _rows(composer, *_parted(overrides))
    searches = Searches(composer, study, overrides, rows, runs_dir)
    if not searches.words:
        raise ConfigError(
            f"study={study.name}: has no ranges to search; give an arm some, as in "
            "optim.lr=1e-3..1e-2"
        )
    return searches


def _parted(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of runs, and those of the study."""
    of_runs = [word for word in overrides if not _is_study(word)]
    return of_runs, [word for word in overrides if _is_study(word)]


def arms_of(composer: Composer, overrides: Sequence[str]) -> Iterator[tuple[Cell, set[Cell]]]:
    """Each arm of the study that the overrides name: as its files have it, and as it is typed.

    Without seeds, and without the keys that a search chooses.
    """
    of_runs, of_study = _parted(overrides)
    _, shared, arms = _study(composer, of_study)
    for arm in arms:
        left_out = {"seed", *searched_keys(arm)}
        plain, typed = (
            [without(left_out, cell) for cell in composer.expand(_merge(composer, *layers, arm))]
            for layers in ((shared,), (shared, of_runs))
        )
        yield plain[0], {*typed}


def _rows(
    composer: Composer, of_runs: Sequence[str], of_study: Sequence[str]
) -> tuple[StudyConfig, list[Row]]:
    """A study and its runs; `scope` without `study=`."""
    study, shared, arms = _study(composer, of_study)
    named = any(word.startswith("study=") for word in of_study)
    _check_varied(composer, study, of_runs, arms, named=named)
    composer.expand(of_runs)  # so that an error names what was typed

    def expanded(arm: Cell) -> list[Cell]:
        return composer.expand(_merge(composer, shared, of_runs, arm))

    rows = []
    for arm, source in zip(arms, sources(arms), strict=True):
        cells = expanded(arm)
        searched = expanded(source) if source else [()] * len(cells)
        if len(searched) != len(cells):
            raise ConfigError(
                f"study.arms={' '.join(arm)}: sets a key that the study sweeps; sweep it in the "
                "arm that has its ranges, too"
            )
        rows += map(Row, cells, map(without_seed, searched))
    return study, rows


def _study(
    composer: Composer, of_study: Sequence[str]
) -> tuple[StudyConfig, list[str], list[Cell]]:
    """A study, the overrides of all its arms, and those of each."""
    names = [word.removeprefix("study=") for word in of_study if word.startswith("study=")]
    options = [word for word in of_study if not word.startswith("study=")]
    if len(names) > 1:
        raise ConfigError(f"study: is set twice ({' and '.join(names)}); keep one")
    study = composer.study(names[0] if names else DEFAULT_STUDY, options)
    of_arm = apply_to_all(lambda arm: composer.expand(shlex.split(arm)), study.arms)
    shared = [*study.overrides, *study.sizes.get(study.size, ())]
    return study, shared, [cell for cells in of_arm for cell in cells]


def _seeds(axes: Axes, typed: Sequence[str]) -> list[str]:
    """The override of `--seeds`."""
    if axes.seeds is None:
        return []
    given = next((word for word in typed if "seed" in keys_of(word)), None)
    if given is not None:
        raise ConfigError(f"--seeds {axes.seeds}: {given} sets the seeds, too; keep one")
    return [f"seed=range(0,{axes.seeds})"]


def _check_name(composer: Composer, axes: Axes) -> None:
    if axes.name is None:
        return
    if not is_name(axes.name):
        raise ConfigError(f"--name {axes.name}: is no name of a folder; use letters, digits and -")
    if axes.name in composer.choices(STUDY):
        raise ConfigError(f"--name {axes.name}: is the name of a study; choose another one")


def _leave_out(
    composer: Composer, cells: list[Cell], exclusions: Iterable[str], *, must_match: bool = True
) -> list[Cell]:
    """The runs that have not all settings of an exclusion.

    Args:
        must_match: whether an exclusion that no run meets is an error.
    """
    kept = cells
    for text in exclusions:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"--exclude {text}: does not parse ({error}); quote it") from None
        if not words:
            raise ConfigError("--exclude: is empty; give overrides, as in --exclude scope=none")
        left_out = [composer.settings(row).items() for row in composer.expand(words)]
        settings = [composer.settings(cell).items() for cell in kept]
        met = [any(all(i in run for i in row) for row in left_out) for run in settings]
        if must_match and not any(met):
            raise ConfigError(
                f"--exclude {text}: no run has all of it; name values that the sweep lists"
            )
        kept = [cell for cell, out in zip(kept, met, strict=True) if not out]
        if not kept:
            raise ConfigError(f"--exclude {text}: leaves out every run; exclude less")
    return kept


def _check_varied(
    composer: Composer,
    study: StudyConfig,
    typed: Sequence[str],
    arms: Sequence[Cell],
    *,
    named: bool,
) -> None:
    """Refuse a typed override of a key that differs between the arms of the study.

    A key of a group from which arms take presets differs if one of these presets sets it, or a
    mapping that holds it.
    A typed preset sets its keys, but for those that it switches off: `router=softmax` goes with
    twins by `router.perturb`, and not with arms that have a `router.gate` of their own.

    Args:
        named: whether the study was typed.
    """
    set_by_arms: dict[str, str] = {}  # each key that an arm sets, and what of the arm does
    for arm_word in sorted({word for arm in arms for word in arm}):
        by_preset = composer.set_by(arm_word)
        for key in keys_of(arm_word):
            own = [inner for inner in by_preset if inner.startswith(f"{key}.")] or [key]
            set_by_arms |= dict.fromkeys(own, key)
    for word in typed:
        met = {
            by
            for key in (*keys_of(word), *composer.set_by(word, off=False))
            for inner, by in set_by_arms.items()
            if key == by or f"{key}.".startswith(f"{inner}.")
        }
        key = min(met, default="")
        if key and not named and composer.is_sweep(word):
            raise ConfigError(
                f"{word}: makes a grid, which takes no study.* settings; leave those out, or name "
                "a study, as in study=scope"
            )
        if key and not named:
            raise ConfigError(
                f"{word}: is one value, where a sweep needs several, as in {key}=A,B; moebench "
                f"train makes one run (without a list of values a sweep runs "
                f"study={study.name}, which varies {key} itself)"
            )
        if key:
            raise ConfigError(
                f"{word}: study={study.name} varies {key} itself; leave it out, or sweep over it "
                "without study="
            )


def _is_study(override: str) -> bool:
    return override.startswith(("study=", "study."))


def _merge(composer: Composer, *layers: Iterable[str]) -> list[str]:
    """Merge layers of overrides: a later layer wins, its presets over the keys that they set.

    Raises ConfigError where a later layer sets some keys of a zipped override and not the others.
    """
    kept: dict[Cell, str] = {}
    for layer in layers:
        new = {keys_of(word): word for word in layer}
        own = {key for keys in new for key in keys}
        presets = {f"{key}." for word in new.values() for key in composer.set_by(word)}
        for keys, word in list(kept.items()):
            replaced = [key for key in keys if key in own or f"{key}.".startswith((*presets,))]
            if replaced and len(replaced) < len(keys):
                others = ", ".join(key for key in keys if key not in replaced)
                raise ConfigError(f"{replaced[0]}: is set by {word}; set {others} with it")
            if replaced and keys not in new:
                del kept[keys]
        kept |= new
    return list(kept.values())
