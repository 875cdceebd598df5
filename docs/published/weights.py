"""What studies of weights say: whether the effect of the scope depends on the weight."""

from collections.abc import Sequence

from docs.published.cells import Studies, at_level, link, titles
from docs.published.papers import weighed
from docs.published.study import Row, Study
from moebench.report.infer.frontier import FEWEST_WEIGHTS, WEIGHT, but_for_weight
from moebench.report.infer.statistics import LEVEL

DEPENDS = {  # what the line begins with, by whether all studies show it, or some
    (True, True): "It depends on the weight of the balance loss",
    (False, True): "It can depend on the weight of the balance loss",
    (False, False): "At other weights",
}
HEAD = (
    "- **{}** (described, not tested). The best weight of a scope is chosen on the seeds on which "
    "it is compared."
)
Weights = dict[float, str]  # arms by weight, ascending


def over_weights(studies: Studies) -> list[str]:
    """What the widest scope gains at two weights, at the best ones and at equal loads."""
    told, depends = [], []
    for name, title in titles(studies).items():
        best = _last(studies[name], "best weight")
        if not best:
            continue
        known = curves_of(studies[name])
        curves = [known.get(best[side], {}) for side in ("arm", "against")]
        change = _change(studies[name], *curves)
        depends.append(bool(change) and _off_zero(change))
        equal = _last(studies[name], "equal MaxVio")
        parts = [
            f"`{best['arm']}` less `{best['against']}` at the best weight of each is {_seen(best)}",
            *([f"at equal loads ({equal['text']}) it is {_seen(equal)}"] if equal else []),
            *_changed(change),
        ]
        sentences = ["; ".join(parts), *_at_the_end(studies[name], best, curves)]
        told.append(f"  - {link(title)}: {'. '.join(sentences)}.")
    head = HEAD.format(DEPENDS[all(depends), any(depends)]) if told else ""
    return ["\n".join([head, *told])] if told else []


def _last(study: Study, kind: str) -> Row:
    """The comparison of the widest scope that has an interval; empty without one."""
    return next((of for of in study.found(kind)[::-1] if of["low"] is not None), {})


def _seen(effect: Row, what: str = "difference") -> str:
    """An effect, and that it is not shown where it is not."""
    return at_level(effect) + f", which shows no {what}" * (not _off_zero(effect))


def _off_zero(effect: Row) -> bool:
    """Whether its interval leaves zero out."""
    return effect["low"] is not None and not effect["low"] <= 0 <= effect["high"]


def curves_of(study: Study) -> dict[str, Weights]:
    """The arms of each scope that has three weights, where arms differ in their weight alone."""
    groups: dict[str, tuple[str, Weights]] = {}
    for arm, runs in study.by_arm().items():
        if WEIGHT in (science := runs[0]["science"]):
            name = arm.partition(f" {WEIGHT}=")[0]
            groups.setdefault(but_for_weight(science), (name, {}))[1][science[WEIGHT]] = arm
    return {
        name: dict(sorted(weights.items()))
        for name, weights in groups.values()
        if len(weights) >= FEWEST_WEIGHTS
    }


def _change(study: Study, arms: Weights, others: Weights) -> Row:
    """The gap of two scopes at the weight of the baseline, less that at the smallest other weight.

    Both weights are known before the first run. Empty where the two scopes do not share them.
    """
    base = study.by_arm().get(study.about.get("baseline", ""), [{"science": {}}])
    high = base[0]["science"].get(WEIGHT)
    shared = sorted({*arms} & {*others})
    low = next((weight for weight in shared if weight != high), None)
    if high not in shared or low is None:
        return {}
    signs = {arms[high]: 1.0, others[high]: -1.0, arms[low]: -1.0, others[low]: 1.0}
    found = weighed(study.runs, signs)
    if found is None:
        return {}
    return {**vars(found.estimate()), "level": 1 - LEVEL, "high_at": high, "low_at": low}


def _changed(change: Row) -> list[str]:
    """The change of the gap in words."""
    if not change:
        return []
    there = f"from weight {change['low_at']:g} (the smallest other) to {change['high_at']:g}"
    return [f"{there} (the baseline's) it changes by {_seen(change, 'change')}"]


def _at_the_end(study: Study, best: Row, curves: Sequence[Weights]) -> list[str]:
    """Which best weights lie at an end of those that were tried."""
    told = []
    for scope, weights in zip((best["arm"], best["against"]), curves, strict=True):
        texts = [of["text"] for of in study.found("best weight", arm=scope)]
        ends = {"smallest": min(weights), "largest": max(weights)} if weights else {}
        for end, weight in ends.items():
            if f"{WEIGHT}={weight:g}" in texts:
                beyond = "smaller" if end == "smallest" else "larger"
                told.append(
                    f"The best of `{scope}`, {weight:g}, is the {end} that was tried, so that a "
                    f"{beyond} one may be better"
                )
    return told
