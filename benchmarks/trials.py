"""What keeps learned routers behind the hash of the token: trials on tuning seeds, as a table.

    python benchmarks/trials.py RUNS

Each setting of learned routers (steps, weight, `optim.router_lr`, `router.init`, model) has a row:
its mean over scopes and seeds, less T (`router=hash`) of the same model, data, steps and seeds. The
gates of T train, too, so T has a column for the setting's own rate and deviation of routers, and
one for their defaults. A setting that is above 0 has not learned yet. Seeds differ by as much as
settings do, so settings are compared over the seeds that all have; those with more seeds show the
mean over all of theirs as well. The difference of scopes is printed nowhere.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.headroom_size import LEARNED, role_of
from benchmarks.tuning_runs import SAME, VALUES, named, print_table, refuse_reported, typed
from moebench.report.infer.arms import BITS
from moebench.report.infer.frontier import MAX_VIO

SCOPE = ("seed", "scope", "balance_bsz", "numerics", "train.eval_every", "router.map")
WEIGHT = ("loss.balance",)
ROUTER = ("optim.router_lr", "router.init")
COLUMNS = {"train.steps": "steps", "loss.balance": "weight"} | {key: f"`{key}`" for key in ROUTER}


@dataclass
class Trial:
    """Learned routers of one setting; values by role and seed.

    Attributes:
        keys: that make it.
        nats: a byte.
        own, plain: nats a byte of T with the routers' settings, and with their defaults.
        vio: MaxVio of the validation set.
    """

    keys: Mapping[str, Any]
    nats: dict[tuple[str, int], float] = field(default_factory=dict)
    own: dict[tuple[str, int], float] = field(default_factory=dict)
    plain: dict[tuple[str, int], float] = field(default_factory=dict)
    vio: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def seeds(self) -> set[int]:
        return {seed for _, seed in self.nats}

    @property
    def rest(self) -> dict[str, Any]:
        """The keys that no column of the table has."""
        return {key: value for key, value in self.keys.items() if key not in COLUMNS}

    def less(self, token: Mapping[tuple[str, int], float], seeds: Collection[int]) -> float:
        """The mean over some seeds and the arms that have all of them, less T; NaN without any."""
        arms = sorted({role for role, _ in self.nats})
        runs = [[(arm, seed) for seed in seeds] for arm in arms]
        known = [run for of in runs if {*of} <= self.nats.keys() & token.keys() for run in of]
        return float(np.mean([self.nats[run] - token[run] for run in known])) if known else math.nan


def trials_of(rows: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """The settings that have a T, the best first.

    Raises RecordError for a run on a seed that is reported.
    """
    rows = [row for row in rows if BITS in row["metrics"] and role_of(row["science"])]
    for row in rows:
        refuse_reported(row, "try settings")
    token = {
        (_place(row["science"], WEIGHT), row["seed"]): math.log(2) * row["metrics"][BITS]
        for row in rows
        if role_of(row["science"]) == "T"
    }
    found: dict[str, Trial] = {}
    for row in rows:
        science, run = row["science"], (role_of(row["science"]) or "", row["seed"])
        if run[0] not in LEARNED:
            continue
        keys = {key: value for key, value in science.items() if key not in SCOPE}
        trial = found.setdefault(repr(sorted(keys.items(), key=str)), Trial(keys))
        trial.nats[run] = math.log(2) * row["metrics"][BITS]
        trial.vio[run] = row["metrics"].get(MAX_VIO, math.nan)
        for kind, free in ((trial.own, WEIGHT), (trial.plain, (*WEIGHT, *ROUTER))):
            if (place := (_place(science, free), row["seed"])) in token:
                kind[run] = token[place]
    known = [trial for trial in found.values() if trial.own or trial.plain]
    shared = _shared(known)
    return sorted(known, key=lambda of: of.less(of.own or of.plain, shared or of.seeds))


def _shared(trials: Sequence[Trial]) -> set[int]:
    """The seeds that all settings and their T have."""
    seeds = [{seed for _, seed in trial.own or trial.plain} for trial in trials]
    return set.intersection(*seeds) if seeds else set()


def _place(science: Mapping[str, Any], free: Sequence[str]) -> str:
    """What a setting shares with its T: all keys but the free ones."""
    keys = {key: value for key, value in science.items() if key not in (*SCOPE, *free)}
    return repr(sorted(keys.items(), key=str))


def table(trials: Sequence[Trial]) -> str:
    """A row a setting."""
    shared = _shared(trials)
    on = f", seed{'s' * (len(shared) > 1)} {', '.join(map(str, sorted(shared)))}" * bool(shared)
    headers = ["setting", *COLUMNS.values(), "arms", "seeds", f"less T{on}"]
    headers += [f"less T at defaults{on}", "less T, all its seeds", "MaxVio valid"]
    lines = [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    names = named([of.rest for of in trials]) if len(trials) > 1 else [SAME]
    for trial, name in zip(trials, names, strict=True):
        cells = [name if name != SAME else ""]
        cells += [typed(trial.keys.get(key, VALUES[key])) for key in COLUMNS]
        cells += [", ".join(sorted({role for role, _ in trial.nats})), str(len(trial.seeds))]
        cells += [_less(trial, of, shared or trial.seeds) for of in (trial.own, trial.plain)]
        cells += [_less(trial, trial.own, trial.seeds) if trial.seeds > shared else ""]
        lines.append(f"| {' | '.join([*cells, f'{np.mean([*trial.vio.values()]):.2f}'])} |")
    return "\n".join(lines)


def _less(trial: Trial, token: Mapping[tuple[str, int], float], seeds: Collection[int]) -> str:
    value = trial.less(token, seeds)
    return "" if math.isnan(value) else f"{value:.4f}"


if __name__ == "__main__":
    lacks = "no learned router beside router=hash of one model, data and steps"
    print_table("What keeps learned routers behind the hash.", trials_of, table, lacks)
