"""What is in neither paper: effects beside what they depend on, and what they are worth."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from docs.published.cells import (
    Studies,
    count,
    distinct,
    ends,
    grid,
    link,
    listed,
    mean,
    nats,
    said,
    settled,
    titles,
    without_constants,
)
from docs.published.papers import FIRST, weighed
from docs.published.study import Row, Study
from moebench.report.infer.arms import PERTURB
from moebench.report.infer.statistics import LEVEL, VERDICT_SEEDS, quantile
from moebench.report.paper.selectors import AXES, meets

LEVEL_OF, _ = AXES["homogeneity of micro-batches"]
SIZE = (
    *("data", "train.steps", "seq_len", "global_bsz", "micro_bsz", "optim.lr", "optim.router_lr"),
    "router.init",
)
PRESCRIBED = ("router.map", "router.random", "model.moe", PERTURB)  # no learned routers, and twins
T_AND_TD = ("hash", "domain_token")
SLOWDOWN = "ep/slowdown"
ERROR, COSINE = "balance/gradient_error", "balance/gradient_cosine"
Arms = Mapping[str, Sequence[Row]]
HEADROOM = """\
H is what the domain is worth to a router that knows the token: T sends each token to its experts by
a hash of the token, TD by its domain and that hash. *Effect / H* is what the arm gains on micro as
a share of H, on the seeds that both have, with the 95 % interval of a ratio of paired means
(Fieller's). Where these are fewer than those of *less micro*, it may be of the other sign. The
interval of H is at 95 %, that of *less micro* at the level of its study. Studies of the same runs
stand once."""
LARGER = """\
H is no upper bound of what a scope can do. T and TD are fixed maps that see neither context nor the
loss, so H is the worth of the domain to such a map alone; a learned router can gain from context as
well."""
BEHIND = """\
all learned routers end on average behind T with the same settings of the router. Part of the effect
may therefore be that a scope helps them to catch up, which need not have to do with domains; after
more tokens the effect may be another. These runs cannot tell these apart."""
HOMOGENEITY = """\
At 1 each micro-batch is of one domain, at 0 domains are mixed freely. The level does not touch
the groups of `global`, so micro is compared with the mean of all global arms. A mixed micro-batch
still has no more domains than sequences (`micro_bsz`). Intervals are each row's own, at the level
of the study."""
ESTIMATES = """\
`global` counts the whole step before its loss is taken. `buffer=K` counts the passes of K sequences
so far, `stale` the step before, `ema=B` a moving average of the steps before, and `window=K` the
last K steps with this one. Gradient error and cosine compare the routers' balance gradient with the
exact one ([definitions](metrics.md#how-does-training-go)), over the last tenth of the steps. A
study tests what its order of findings names; all other differences are described."""
COST = """\
The slowdown that expert layers would have over ranks that dispatch together (1: none,
[how it is computed](metrics.md#what-does-it-cost)). All learned routers of one size that were
trained with the same seeds are compared, whichever study they are of. Listed are those that no
other on these seeds beats in both means, however small the difference: a row may be there by
chance. A `homogeneity` below 1 mixes the data, and changes more than the balance. Prescribed and
random routers are left out; [headroom](#each-study) has them."""
FRONTIER = """\
A wider scope has a smaller balance loss at the same weight. So scopes are compared at the weight
that is best for each on these seeds, and where their loads are equally even (MaxVio of validation,
interpolated over weights). Differences are paired by seed, with 95 % intervals that do not count
that the best of several weights was taken. All are described; none is tested."""
GAIN = """\
The share of the last tokens over which the baseline's mean validation loss fell by as much, on
straight lines between its evaluations, with the ends of the 95 % interval of the difference.
Below 0, the arm is worse: the baseline was as good so much earlier. All evaluations lie on one
schedule of the learning rate, so this is no scaling law."""


def beyond(studies: Studies) -> list[str]:
    """The sections for which a study has something."""
    makers = (_by_headroom, _by_homogeneity, _estimators, _by_cost, _frontiers, _gains)
    sections = [section for section in (make(studies) for make in makers) if section[-1]]
    parts = [part for section in sections for part in section]
    return ["## What is in neither paper", *parts] if parts else []


def _by_headroom(studies: Studies) -> list[str]:
    """Headroom is measured in the same study, or in another of the same size, text and steps."""
    names, rooms = titles(studies), {}
    for name in names:
        for room in studies[name].found("headroom", arm="T"):
            fixed = studies[name].by_arm(room["part"])
            rooms |= dict.fromkeys(_sizes(studies[name], room["part"]), (room, fixed))
    rows = []
    for name, title, effect in distinct(studies, claim=FIRST):
        by_arm = studies[name].by_arm(effect["part"])
        runs = by_arm.get(effect["arm"], [])
        if runs and (found := rooms.get(_size(runs[0]["science"]))) is not None:
            room, fixed = found
            told = [ends(room), ends(effect), *_share(by_arm, effect, fixed), said(effect)]
            rows.append([link(title), f"`{effect['arm']}`", *told])
    headers = ["study", "arm", "H = T - TD", "less micro", "effect / H", "seeds of it", "verdict"]
    parts = [grid(headers, rows)]
    if rows:
        parts = [HEADROOM, *parts, *_beyond_headroom(studies)]
    return ["### The effect of the scope beside headroom", *parts]


def _share(by_arm: Arms, effect: Row, fixed: Arms) -> list[str]:
    """What an arm gains as a share of H, and the number of seeds that have both."""
    arms = [by_arm.get(effect["against"]), by_arm[effect["arm"]], *map(fixed.get, T_AND_TD)]
    if not all(arms):
        return ["", ""]
    nats_of = [{run["seed"]: nats(run) for run in runs or ()} for runs in arms]
    seeds = sorted(set.intersection(*({*of} for of in nats_of)))
    if not seeds:
        return ["", ""]
    micro, arm, token, both = (np.array([of[seed] for seed in seeds]) for of in nats_of)
    low, high = ratio_interval(micro - arm, token - both)
    share = {"value": (micro - arm).mean() / (token - both).mean(), "low": low, "high": high}
    return [ends(share, share=True), str(len(seeds))]


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of a ratio of two means of paired values, by Fieller's theorem.

    None where it has no ends, as the lower mean is not told from 0, and below three pairs.
    """
    if len(top) < VERDICT_SEEDS:
        return None, None
    (of_top, of_both), (_, of_bottom) = np.cov(top, bottom) / len(top)
    squared = quantile(len(top) - 1, (1 + LEVEL) / 2) ** 2
    a = bottom.mean() ** 2 - squared * of_bottom
    b = top.mean() * bottom.mean() - squared * of_both
    c = top.mean() ** 2 - squared * of_top
    if a <= 0:
        return None, None
    half = math.sqrt(max(b * b - a * c, 0.0))
    return float((b - half) / a), float((b + half) / a)


def _beyond_headroom(studies: Studies) -> list[str]:
    """How the effect of the scope compares with H, seed by seed, and what that means."""
    weights = {"micro": 1.0, "global": -1.0, "hash": -1.0, "domain_token": 1.0}
    told, behind = [], []
    for name, title in titles(studies).items():
        found = weighed(studies[name].runs, weights)
        if found is None or "interim" in studies[name].about:
            continue
        estimate = found.estimate()
        if estimate.low is None or estimate.high is None:
            continue
        apart = "larger than" if estimate.low > 0 else "smaller than" if estimate.high < 0 else ""
        told.append(
            f"In {link(title)}, the effect of the scope is {apart or 'not told apart from'} H: the "
            f"effect less H, paired by seed, is {ends(vars(estimate))} nats a byte "
            f"({found.seeds} seeds, 95 %)."
        )
        learned = studies[name].found("headroom", verdict="learned")
        if learned and min(of["value"] for of in learned) > 0:
            alike = any(of["low"] is None or of["low"] <= 0 for of in learned)
            behind.append(link(title) + " (where intervals do not tell all of them from T)" * alike)
    if not told:
        return []
    return [" ".join([*told, LARGER, *[f"In {' and '.join(behind)}, {BEHIND}"] * bool(behind)])]


def _sizes(study: Study, part: str) -> set[str]:
    """Model, text and steps of the learned arms of a study."""
    sciences = [run["science"] for run in study.runs_of(part)]
    return {_size(of) for of in sciences if "router.map" not in of and "model.moe" not in of}


def _size(science: Mapping[str, Any]) -> str:
    """Model, text and steps of a run, but for the token that names a domain."""
    return repr(sorted((k, v) for k, v in science.items() if k.startswith("model.") or k in SIZE))


def _by_homogeneity(studies: Studies) -> list[str]:
    rows: list[list[str]] = []
    for name, title in titles(studies).items():
        runs, level = studies[name].runs, studies[name].made()["level"]
        wide = sorted({run["arm"] for run in runs if _is_global(run["science"])})
        levels = {run["arm"]: LEVEL_OF(run["science"]) for run in runs}
        levels = {arm: at for arm, at in levels.items() if at is not None}
        if len({*levels.values()}) < 3:
            continue
        for arm, at in sorted(levels.items(), key=lambda of: -of[1]):
            found = weighed(runs, {arm: 1.0, **{other: -1 / len(wide) for other in wide}})
            if found is not None:
                effect = ends(vars(found.estimate(1 - level)))
                rows.append([link(title), f"{at:g}", effect, str(found.seeds)])
    headers = ["study", "homogeneity", "micro less global, nats a byte", "seeds"]
    return ["### The effect of the scope beside homogeneity", HOMOGENEITY, grid(headers, rows)]


def _is_global(science: Mapping[str, Any]) -> bool:
    plain = {key: value for key, value in science.items() if key != "data.homogeneity"}
    return meets({"scope": "group", "balance_bsz": "global_bsz"}, plain)


def _estimators(studies: Studies) -> list[str]:
    rows = []
    for name, title in titles(studies).items():
        for arm, runs in studies[name].by_arm().items():
            errors, cosines = (_values(runs, metric) for metric in (ERROR, COSINE))
            if "balance.estimator_error" not in runs[0]["science"] or not mean(errors, 3):
                continue
            effects = studies[name].found("difference", arm=arm)[:1]
            told = [text for of in effects for text in (ends(of), settled(studies[name], of))]
            told = told or ["", ""]
            rows.append([link(title), f"`{arm}`", *told, mean(errors, 3), mean(cosines, 3)])
    headers = ["study", "arm", "nats a byte less exact", "verdict", "gradient error", "cosine"]
    return ["### Exact counts beside estimates", ESTIMATES, grid(headers, rows)]


def _values(runs: list[Row], metric: str) -> list[float]:
    return [run["metrics"].get(metric, math.nan) for run in runs]


def _by_cost(studies: Studies) -> list[str]:
    """The frontier of the learned routers of one size and the same seeds, of all studies."""
    pools: dict[tuple[str, frozenset[int]], dict[frozenset[tuple[int, float]], list[Any]]] = {}
    for name, title in titles(studies).items():
        for part in studies[name].parts:
            for arm, runs in studies[name].by_arm(part).items():
                slow, loss = _values(runs, SLOWDOWN), [nats(run) for run in runs]
                if {*PRESCRIBED} & {*runs[0]["science"]} or np.isnan([*slow, *loss]).any():
                    continue
                seeds = frozenset(run["seed"] for run in runs)
                pool = pools.setdefault((_size(runs[0]["science"]), seeds), {})
                at = float(np.mean(slow)), float(np.mean(loss))
                same = frozenset(
                    (run["seed"], value) for run, value in zip(runs, loss, strict=True)
                )
                told = ", ".join(filter(None, (f"`{arm}`", part)))
                pool.setdefault(same, [*at, told, link(title), listed(seeds)])
    rows = []
    for key, pool in pools.items():
        if any(_holds(pools[other], pool) for other in pools if other != key):
            continue
        for x, y, *cells in sorted(pool.values()):
            others = [of for of in pool.values() if of[:2] != [x, y]]
            if others and not any(of[0] <= x and of[1] <= y for of in others):
                rows.append([*cells, f"{x:.3f}", f"{y:.4f}"])
    headers = ["arm", "study", "seeds", "slowdown", "nats a byte"]
    return ["### Quality beside the virtual cost of expert parallelism", COST, grid(headers, rows)]


def _holds(pool: Iterable[frozenset[Any]], other: Iterable[frozenset[Any]]) -> bool:
    """Whether the runs of all arms of another pool are among those of arms of a pool."""
    return all(any(runs <= of for of in pool) for runs in other)


def _frontiers(studies: Studies) -> list[str]:
    rows = [
        [link(title), f"`{effect['arm']}`", kind, effect["text"], ends(effect) or _without(effect)]
        for name, title in titles(studies).items()
        for kind in ("best weight", "equal MaxVio")
        for effect in studies[name].found(kind)
    ]
    headers = ["study", "scope", "compared at", "there", "nats a byte less the first"]
    return ["### The frontier of each scope", FRONTIER, grid(headers, rows)]


def _without(effect: Row) -> str:
    """Why a scope has no difference to the first one."""
    return "(the first)" if effect["arm"] == effect["against"] else "no load that all scopes have"


def _gains(studies: Studies) -> list[str]:
    """What several studies say of the same runs stands once."""
    rows: dict[tuple[str, ...], str] = {}
    for name, title in titles(studies).items():
        for effect in studies[name].found("gain"):
            saved = ends(effect, share=True) or effect["text"]
            arms = (f"`{effect[key]}`" for key in ("arm", "against"))
            rows.setdefault((*arms, saved, count(effect["tokens"])), link(title))
    headers = ["study", "arm", "against", "tokens saved", "tokens"]
    lines = [[study, *cells] for cells, study in rows.items()]
    headers, lines, same = without_constants(headers, lines)
    about = " ".join([GAIN, same]).strip()
    return ["### Compute-equivalent gain", about, grid(headers, lines)]
