"""What is in neither paper: effects beside what they depend on, and what they are worth."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from docs.published.cells import (
    Studies,
    count,
    distinct,
    ends,
    grid,
    link,
    mean,
    nats,
    said,
    titles,
)
from docs.published.papers import FIRST, weighed
from docs.published.study import Row, Study
from moebench.report.infer.arms import PERTURB
from moebench.report.paper.selectors import AXES, meets

LEVEL_OF, _ = AXES["homogeneity of micro-batches"]
SIZE = (
    *("data", "train.steps", "seq_len", "global_bsz", "micro_bsz", "optim.lr", "optim.router_lr"),
    "router.init",
)
PRESCRIBED = ("router.map", "router.random", "model.moe", PERTURB)  # no learned routers, and twins
SLOWDOWN = "ep/slowdown"
ERROR, COSINE = "balance/gradient_error", "balance/gradient_cosine"
HEADROOM = """\
H is what the domain is worth to a router that knows the token: T sends each token to its experts by
a hash of the token, TD by its domain and that hash. Studies of the same runs stand once."""
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
other beats in both means, however small the difference: a row may be there by chance. A
`homogeneity` below 1 mixes the data, and changes more than the balance. Prescribed and random
routers are left out; [headroom](#each-study) has them."""
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
            rooms |= dict.fromkeys(_sizes(studies[name], room["part"]), room)
    rows = []
    for name, title, effect in distinct(studies, claim=FIRST):
        runs = studies[name].by_arm(effect["part"]).get(effect["arm"], [])
        if runs and (room := rooms.get(_size(runs[0]["science"]))) is not None:
            cells = [ends(room), ends(effect), said(effect)]
            rows.append([link(title), f"`{effect['arm']}`", count(room["tokens"]), *cells])
    headers = ["study", "arm", "tokens", "H = T - TD", "less micro", "verdict"]
    parts = [grid(headers, rows)]
    if rows:
        parts = [HEADROOM, *parts, *_beyond_headroom(studies)]
    return ["### The effect of the scope beside headroom", *parts]


def _beyond_headroom(studies: Studies) -> list[str]:
    """By how much the effect of the scope is larger than H, seed by seed, and what that means."""
    weights = {"micro": 1.0, "global": -1.0, "hash": -1.0, "domain_token": 1.0}
    told, behind = [], []
    for name, title in titles(studies).items():
        found = weighed(studies[name].runs, weights)
        if found is None or "interim" in studies[name].about:
            continue
        estimate = found.estimate()
        if estimate.low is None or estimate.value <= 0:
            continue
        larger = "is larger than H" if estimate.low > 0 else "is not shown to be larger than H"
        told.append(
            f"In {link(title)}, the effect of the scope {larger}: the effect less H, paired by "
            f"seed, is {ends(vars(estimate))} nats a byte ({found.seeds} seeds, 95 %)."
        )
        learned = [of["value"] for of in studies[name].found("headroom", verdict="learned")]
        if learned and min(learned) > 0:
            behind.append(link(title))
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
    rows: list[tuple[str, float, list[str]]] = []
    for name, title in titles(studies).items():
        runs, level = studies[name].runs, studies[name].made()["level"]
        wide = sorted({run["arm"] for run in runs if _is_global(run["science"])})
        levels = {run["arm"]: LEVEL_OF(run["science"]) for run in runs}
        levels = {arm: at for arm, at in levels.items() if at is not None}
        if len({*levels.values()}) < 3:
            continue
        for arm, at in levels.items():
            found = weighed(runs, {arm: 1.0, **{other: -1 / len(wide) for other in wide}})
            if found is not None:
                effect = ends(vars(found.estimate(1 - level)))
                rows.append((title, -at, [link(title), f"{at:g}", effect, str(found.seeds)]))
    headers = ["study", "homogeneity", "micro less global, nats a byte", "seeds"]
    cells = [row for *_, row in sorted(rows)]
    return ["### The effect of the scope beside homogeneity", HOMOGENEITY, grid(headers, cells)]


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
            told = [text for of in effects for text in (ends(of), said(of))] or ["", ""]
            rows.append([link(title), f"`{arm}`", *told, mean(errors, 3), mean(cosines, 3)])
    headers = ["study", "arm", "nats a byte less exact", "verdict", "gradient error", "cosine"]
    return ["### Exact counts beside estimates", ESTIMATES, grid(headers, rows)]


def _values(runs: list[Row], metric: str) -> list[float]:
    return [run["metrics"].get(metric, math.nan) for run in runs]


def _by_cost(studies: Studies) -> list[str]:
    """The frontier of the learned routers of one size and the same seeds, of all studies."""
    pools: dict[tuple[str, ...], dict[frozenset[tuple[int, float]], list[Any]]] = {}
    for name, title in titles(studies).items():
        for part in studies[name].parts:
            for arm, runs in studies[name].by_arm(part).items():
                slow, loss = _values(runs, SLOWDOWN), [nats(run) for run in runs]
                if {*PRESCRIBED} & {*runs[0]["science"]} or np.isnan([*slow, *loss]).any():
                    continue
                seeds = " ".join(str(seed) for seed in sorted(run["seed"] for run in runs))
                pool = pools.setdefault((_size(runs[0]["science"]), seeds), {})
                at = float(np.mean(slow)), float(np.mean(loss))
                same = frozenset(
                    (run["seed"], value) for run, value in zip(runs, loss, strict=True)
                )
                told = ", ".join(filter(None, (f"`{arm}`", part)))
                pool.setdefault(same, [*at, told, link(title), str(len(runs))])
    rows = []
    for pool in pools.values():
        for x, y, *cells in sorted(pool.values()):
            others = [of for of in pool.values() if of[:2] != [x, y]]
            if others and not any(of[0] <= x and of[1] <= y for of in others):
                rows.append([*cells, f"{x:.3f}", f"{y:.4f}"])
    headers = ["arm", "study", "seeds", "slowdown", "nats a byte"]
    return ["### Quality beside the virtual cost of expert parallelism", COST, grid(headers, rows)]


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
    headers = ["study", "arm", "against", "tokens saved", "of tokens"]
    lines = [[study, *cells] for cells, study in rows.items()]
    return ["### Compute-equivalent gain", GAIN, grid(headers, lines)]
