"""What keeps learned routers behind the hash of the token: trials on tuning seeds, as a table.

    python benchmarks/trials.py RUNS

Each setting of learned routers (steps, weight, `optim.router_lr`, `router.init`, model) has a row:
its mean over scopes and seeds, less T of the same model, data, steps and seeds. T is `router=hash`,
whose gates train at their defaults. A setting that is above 0 has not learned yet. The difference
of scopes is printed nowhere.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headroom_size import LEARNED, named, role_of, with_metrics
from moebench.errors import MoebenchError, RecordError
from moebench.registration import TUNING
from moebench.report.infer.frontier import MAX_VIO
from moebench.report.infer.power import BITS
from moebench.report.read.frame import load

SCOPE = ("seed", "scope", "balance_bsz", "numerics", "train.eval_every", "router.map")
ROUTER = ("loss.balance", "optim.router_lr", "router.init")  # what T does not share


@dataclass
class Trial:
    """Learned routers of one setting.

    Attributes:
        keys: that make it.
        scopes: that were trained.
        less: nats a byte less T, of each run that has a T.
        vio: MaxVio of the validation set, of these runs.
        seeds: of these runs.
    """

    keys: Mapping[str, Any]
    scopes: set[str] = field(default_factory=set)
    less: list[float] = field(default_factory=list)
    vio: list[float] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)


def trials_of(rows: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """The settings that have a T, the best first; runs on seeds that are reported are no trials."""
    rows = [row for row in rows if row["seed"] >= TUNING and BITS in row["metrics"]]
    token = {
        (_place(row["science"]), row["seed"]): row["metrics"][BITS]
        for row in rows
        if role_of(row["science"]) == "T" and not {*ROUTER} & {*row["science"]}
    }
    found: dict[str, Trial] = {}
    for row in rows:
        science, role = row["science"], role_of(row["science"])
        hashed = token.get((_place(science), row["seed"]))
        if role not in LEARNED or hashed is None:
            continue
        keys = {key: value for key, value in science.items() if key not in SCOPE}
        trial = found.setdefault(repr(sorted(keys.items(), key=str)), Trial(keys))
        trial.scopes.add(role)
        trial.seeds.add(row["seed"])
        trial.less.append(math.log(2) * (row["metrics"][BITS] - hashed))
        trial.vio.append(row["metrics"].get(MAX_VIO, math.nan))
    return sorted(found.values(), key=lambda trial: float(np.mean(trial.less)))


def _place(science: Mapping[str, Any]) -> str:
    """What a setting shares with its T."""
    keys = {key: value for key, value in science.items() if key not in (*SCOPE, *ROUTER)}
    return repr(sorted(keys.items(), key=str))


def table(trials: Sequence[Trial]) -> str:
    """A row a setting."""
    lines = ["| setting | arms | seeds | learned less T | MaxVio valid |", "|---" * 5 + "|"]
    for trial, name in zip(trials, named([of.keys for of in trials]), strict=True):
        less, vio = float(np.mean(trial.less)), float(np.mean(trial.vio))
        cells = [name, ", ".join(sorted(trial.scopes)), str(len(trial.seeds))]
        lines.append(f"| {' | '.join([*cells, f'{less:.4f}', f'{vio:.2f}'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What keeps learned routers behind the hash.")
    parser.add_argument("runs", nargs="*", default=["runs"], help="directories of runs")
    options = parser.parse_args()
    try:
        trials = trials_of(with_metrics(load([Path(word) for word in options.runs])))
        if not trials:
            raise RecordError("no learned router beside router=hash of one model, data and steps")
        print(table(trials))
    except MoebenchError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
