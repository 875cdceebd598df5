"""The choice of a study's size by headroom, from records of `study=headroom_size` on tuning seeds.

    python benchmarks/headroom_size.py --commands data=folder data.path=DIR   # what to run
    python benchmarks/headroom_size.py RUNS                                   # the table

H = T - TD in nats a byte, paired by seed, with its lower 80 % bound (Student's t, one-sided). s is
the deviation of A/A pairs, with its upper 80 % bound. c is CPU minutes a seed of the six arms of
`study=scope`; a run of a stack counts its share of the stack's minutes. The score is
H_L^2 / (s_U^2 c). A second table has H by steps, of sizes that are not whole as well. Of the
learned arms only their mean is read: the difference of scopes is printed nowhere.
"""

import argparse
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.tuning_runs import named, refuse_reported, rows_in, with_routers
from moebench.config.compose import Composer
from moebench.config.schema import StudyConfig
from moebench.errors import MoebenchError, RecordError
from moebench.report.infer.arms import BITS
from moebench.report.infer.power import Noise, noise_of
from moebench.report.infer.statistics import quantile

STUDY = "headroom_size"
SURE = 0.8  # of each bound
ARMS = 6  # of study=scope
FALL = 1 / 3  # of H from half of the steps to all of them, at most
SEEDS, PAIRS = 3, 6  # that a size takes
WEIGHTS = "0.02,0.05,0.1,0.2"
# keys in which the runs of one size differ
FREE = (
    *("seed", "scope", "balance_bsz", "train.steps", "numerics", "loss.balance"),
    *("router.map", "router.perturb", "balance.estimator", "balance.layers"),
)
LEARNED = ("micro", "shuffled", "global")


@dataclass
class Size:
    """One size at its weight: nats a byte by role, number of steps, and seed.

    Attributes:
        keys: that make it.
        steps: of the learned arms.
        weight: of their balance loss.
        values: of T, TD and the learned arms, whose twins end in " A/A".
        minutes: of each learned run.
    """

    keys: Mapping[str, Any]
    steps: int
    weight: float
    values: dict[tuple[str, int], dict[int, float]]
    minutes: list[float] = field(default_factory=list)

    def nats(self, role: str, steps: int) -> dict[int, float]:
        return self.values.get((role, steps), {})

    def headroom(self, steps: int) -> tuple[float, float, int]:
        """H, its lower bound, and seeds; NaN where seeds lack."""
        one, other = self.nats("T", steps), self.nats("TD", steps)
        each = np.array([one[seed] - other[seed] for seed in sorted({*one} & {*other})])
        if len(each) < 2:
            return float(each.mean()) if len(each) else math.nan, math.nan, len(each)
        error = float(each.std(ddof=1)) / math.sqrt(len(each))
        mean = float(each.mean())
        return mean, mean - quantile(len(each) - 1, SURE) * error, len(each)

    def noise(self) -> Noise | None:
        """Of the A/A pairs."""
        pairs = []
        for role in LEARNED:
            one, other = self.nats(role, self.steps), self.nats(f"{role} A/A", self.steps)
            pairs += [other[seed] - one[seed] for seed in sorted({*one} & {*other})]
        return noise_of(np.array(pairs)) if pairs else None

    def learned(self, roles: Sequence[str] = LEARNED) -> float:
        """The mean over seeds and learned arms, less T; NaN where one of them lacks."""
        by_role = [self.nats(role, self.steps) for role in ("T", *roles)]
        seeds = self.shared("T", *roles)
        if not seeds:
            return math.nan
        token, *arms = ([of[seed] for seed in seeds] for of in by_role)
        return float(np.mean(arms) - np.mean(token))

    def shared(self, *roles: str) -> list[int]:
        """The seeds that some roles have at all steps."""
        return sorted(set.intersection(*({*self.nats(role, self.steps)} for role in roles)))


def role_of(science: Mapping[str, Any]) -> str | None:
    """What a run is in a size; None for one that is no part of it."""
    roles = {"hash": "T", "domain_token": "TD"}
    if (kind := science.get("router.map")) is not None:
        return roles.get(str(kind))
    if "data.homogeneity" in science:
        return None
    scope, size = science.get("scope"), science.get("balance_bsz")
    names = {science.get("micro_bsz"): "micro", science.get("global_bsz"): "global"}
    name = "shuffled" if scope == "shuffled" else names.get(size) if scope == "group" else None
    return name and name + " A/A" * ("router.perturb" in science)


def sizes_of(rows: Iterable[Mapping[str, Any]]) -> list[Size]:
    """The sizes of finished runs, as rows of the frame with their metrics.

    A size has all learned arms at one weight of a balance loss; runs of others are no part of it.

    Raises RecordError for a run on a seed that is reported.
    """
    _, sizes = _gathered(rows)
    return [size for size in sizes.values() if all(size.nats(r, size.steps) for r in LEARNED)]


def by_steps(rows: Iterable[Mapping[str, Any]]) -> list[Size]:
    """T and TD of each size at each number of steps, with learned arms where there are some.

    Of several weights, that with the most learned runs is taken, and the smaller one of equals.

    Raises RecordError for a run on a seed that is reported.
    """
    fixed, sizes = _gathered(rows)
    found = []
    for name, of in fixed.items():
        for steps in sorted({steps for _, steps in of.values}):
            at = replace(of, steps=steps)
            tried = [size for (own, n, _), size in sizes.items() if (own, n) == (name, steps)]
            tried.sort(key=lambda size: (-len(size.minutes), size.weight))
            found += [next(iter(tried), at)] * bool(at.shared("T", "TD"))
    return found


def _gathered(
    rows: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Size], dict[tuple[str, int, float], Size]]:
    """T and TD by size, and each size at its steps and weights with what it has of the roles."""
    fixed: dict[str, Size] = {}
    sizes: dict[tuple[str, int, float], Size] = {}
    for row in rows:
        science = row["science"]
        role, value = role_of(science), row["metrics"].get(BITS)
        prescribed = role in ("T", "TD")
        weight = None if prescribed else science.get("loss.balance")
        if role is None or value is None or (weight is None and not prescribed):
            continue
        refuse_reported(row, "choose a size")
        keys = {key: of for key, of in science.items() if key not in FREE}
        name, steps = repr(sorted(keys.items(), key=str)), int(science["train.steps"])
        values = fixed.setdefault(name, Size(keys, 0, math.nan, {})).values
        if weight is not None:
            size = sizes.setdefault((name, steps, weight), Size(keys, steps, weight, {}))
            values = size.values
            if role in LEARNED and row["metrics"].get("seconds"):
                size.minutes.append(row["metrics"]["seconds"] / 60)
        values.setdefault((role, steps), {})[row["seed"]] = math.log(2) * value
    for (name, _, _), size in sizes.items():
        size.values |= fixed[name].values
    return fixed, sizes


def too_few(size: Size) -> str:
    """Which runs a size lacks before the rules can judge it; "" for none."""
    seeds, half = (size.headroom(steps)[2] for steps in (size.steps, size.steps // 2))
    pairs = noise.pairs if (noise := size.noise()) else 0
    if min(seeds, half) >= SEEDS and pairs >= PAIRS:
        return ""
    return f"{seeds} seeds, {half} at half, {pairs} A/A pairs: too few"


def why_not(size: Size) -> list[str]:
    """The rules that a size does not meet; none for an eligible one."""
    if few := too_few(size):
        return [few]
    full, half = size.headroom(size.steps), size.headroom(size.steps // 2)
    why = []
    if not (full[1] > 0 and half[1] > 0):
        why.append("H is not above 0 at all and at half of the steps")
    if not full[0] >= (1 - FALL) * half[0]:
        why.append("H falls by more than a third")
    if not size.learned() <= 0:
        why.append("learned routers are behind the hash")
    return why


def score(size: Size) -> float:
    """H_L^2 / (s_U^2 c); 0 without headroom, NaN where something lacks."""
    _, low, _ = size.headroom(size.steps)
    noise, cost = size.noise(), cost_of(size)
    if noise is None or math.isnan(low) or math.isnan(cost):
        return math.nan
    return max(low, 0.0) ** 2 / (noise.upper**2 * cost)


def cost_of(size: Size) -> float:
    """CPU minutes a seed of study=scope."""
    return ARMS * float(np.mean(size.minutes)) if size.minutes else math.nan


def ranking(sizes: Sequence[Size]) -> list[Size]:
    """Eligible sizes before the others, then by score."""
    return sorted(sizes, key=lambda size: (bool(why_not(size)), -np.nan_to_num(score(size))))


def table(sizes: Sequence[Size]) -> str:
    """The sizes, the best first; eligible ones before the others."""
    ranked = ranking(sizes)
    headers = "size | steps | weight | H | H_L | H at half | H_L | s | s_U | learned less T | c"
    lines = [f"| {headers} | score | eligible |", "|---" * 13 + "|"]
    names = named(with_routers([size.keys for size in ranked]))
    for size, name in zip(ranked, names, strict=True):
        (h, low, _), (half, half_low, _) = map(size.headroom, (size.steps, size.steps // 2))
        noise = size.noise() or Noise(math.nan, math.nan, 0)
        numbers = (h, low, half, half_low, noise.sd, noise.upper, size.learned())
        cells = [name, str(size.steps), f"{size.weight:g}"]
        cells += ["" if math.isnan(value) else f"{value:.4f}" for value in numbers]
        cells += [
            "" if math.isnan(value) else f"{value:.3g}" for value in (cost_of(size), score(size))
        ]
        cells.append("; ".join(why_not(size)) or "yes")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steps_table(sizes: Sequence[Size]) -> str:
    """H by steps, a line for each size and number of steps."""
    headers = "size | steps | seeds | H | H_L | learned less T | of | weight"
    lines = [f"| {headers} |", "|---" * 8 + "|"]
    names = named(with_routers([size.keys for size in sizes]))
    for name, size in sorted(zip(names, sizes, strict=True), key=lambda of: (of[0], of[1].steps)):
        h, low, seeds = size.headroom(size.steps)
        cells = [name, str(size.steps), str(seeds), f"{h:.4f}"]
        cells += ["" if math.isnan(low) else f"{low:.4f}", *_behind(size)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _behind(size: Size) -> list[str]:
    """How far learned arms are from T, of which arms and seeds, and their weight.

    All arms are taken where they have as many seeds as global alone, which is taken else.
    """
    seeds = {roles: len(size.shared("T", *roles)) for roles in (LEARNED, LEARNED[-1:])}
    roles = max(seeds, key=lambda roles: seeds[roles])
    if not seeds[roles]:
        return ["", "", ""]
    arms = f"{len(roles)} arms" if len(roles) > 1 else roles[0]
    told = f"{arms}, {seeds[roles]} seed{'s' * (seeds[roles] > 1)}"
    return [f"{size.learned(roles):.4f}", told, f"{size.weight:g}"]


def commands(words: Sequence[str], study: StudyConfig) -> list[str]:
    """What to run for each size: weights, the size, T and TD at half of the steps."""
    data, made = shlex.join(words), []
    shape = [word for word in study.overrides if not word.startswith("seed=")]
    for name, overrides in study.sizes.items():
        own = [word for word in overrides if not word.startswith(("loss.balance=", "seed="))]
        keys = {word.partition("=")[0]: word.partition("=")[2] for word in own}
        base = [word for word in shape if word.partition("=")[0] not in keys]
        size = f"study={STUDY} study.size={name}"
        less = " ".join(f"--exclude scope={scope}" for scope in LEARNED)
        made += [
            f"# {name}: the smallest weight at which load/max_vio_global is at most 0.5",
            f"moebench sweep --name weights-{name} scope=global loss.balance={WEIGHTS} seed=1000 "
            f"{shlex.join([*base, *own])} {data}",
            f"moebench report --study weights-{name} --metrics load/max_vio_global",
            f"moebench sweep {size} {data} loss.balance=WEIGHT",
            f"moebench sweep {size} {data} train.steps={int(keys['train.steps']) // 2} {less}",
        ]
    return [line.rstrip() for line in made]


def main() -> None:
    parser = argparse.ArgumentParser(description="The choice of a study's size by headroom.")
    parser.add_argument("words", nargs="*", help="directories of runs; with --commands, overrides")
    parser.add_argument("--commands", action="store_true", help="print what to run")
    options = parser.parse_args()
    try:
        if options.commands:
            print("\n".join(commands(options.words, Composer().study(STUDY))))
            return
        rows = rows_in(options.words or ["runs"])
        if not (sizes := sizes_of(rows)):
            raise RecordError(f"no finished run of study={STUDY}; --commands prints what to run")
        print(table(sizes), steps_table(by_steps(rows)), sep="\n\n")
    except MoebenchError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
