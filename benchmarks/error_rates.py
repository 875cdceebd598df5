"""How often verdicts err, and their power: paired t in an order or by Holm, and pooled Dunnett.

    python benchmarks/error_rates.py                 # the tables of docs/reading.md
    python benchmarks/error_rates.py --studies 2000  # quicker, rougher
    python benchmarks/error_rates.py --looks         # of studies that end by rule (`looks.py`)

A study has a baseline and 2 or 5 arms that are compared with it. Values are normal with a deviation
of 1, except for one arm or the baseline, whose deviation is a multiple of it. An error is a study
with at least one false verdict. Rates of 20,000 studies have a standard error of 0.15 %.

A finding that is not decided is contradicted, too, where its interval excludes the paper's size. So
the last tables make every arm differ by that size, and count studies that contradict any of them.

The family of the secondary endpoints has two metrics of all arms, and three findings on two more
metrics: a difference in each, and a ranking of two arms and the baseline. Its tests share one level
by Holm's method, however the metrics of a run are correlated.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks import looks
from moebench.report.infer.decisions import LEVEL, adjusted, excludes
from moebench.report.infer.dunnett import critical_value

STUDIES = 20_000
SEEDS = (3, 4, 6, 8, 12)
DEVIATIONS = (0.1, 0.3, 1.0, 3.0)
EFFECT = 2.0  # of all arms, in deviations of a run, where power is measured
SIZES = (0.1, 0.5, 1.0, 2.0)  # of the paper's, in deviations of a run
RULES = ("order", "Holm", "Dunnett")
METRICS = 4  # of the secondary family: two endpoints, and two that only findings are about
CORRELATIONS = (0.0, 0.95)  # of the metrics of a run


def draw(
    rng: np.random.Generator, studies: int, seeds: int, deviations: Sequence[float]
) -> np.ndarray:
    """Differences to the baseline without any effect, [studies, seeds, arms]."""
    values = rng.normal(size=(studies, seeds, len(deviations))) * np.asarray(deviations)
    return values[..., 1:] - values[..., :1]


def paired_p(difference: np.ndarray) -> np.ndarray:
    """p of the paired t of each arm, [studies, arms]."""
    from scipy.special import stdtr

    seeds = difference.shape[1]
    error = difference.std(axis=1, ddof=1) / np.sqrt(seeds)
    return 2 * stdtr(seeds - 1, -np.abs(difference.mean(axis=1)) / error)


def rejected(difference: np.ndarray, rule: str) -> np.ndarray:
    """Which arms a rule tells from the baseline, [studies, arms]."""
    if rule != "Dunnett":
        return adjusted(paired_p(difference), rule == "order") < LEVEL
    studies, seeds, arms = difference.shape
    values = np.concatenate([np.zeros((studies, seeds, 1)), difference], axis=2)
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=2, keepdims=True)
    residual += values.mean(axis=(1, 2), keepdims=True)
    df = arms * (seeds - 1)
    error = np.sqrt((residual**2).sum(axis=(1, 2)) / df * 2 / seeds)
    critical = critical_value(np.full((arms, arms), 0.5) + 0.5 * np.eye(arms), df, 1 - LEVEL)
    return np.abs(difference.mean(axis=1)) > critical * error[:, None]


def error_rate(
    rule: str, studies: int, seeds: int, deviations: Sequence[float], shown: int = 0
) -> float:
    """The share of studies with a false verdict.

    Args:
        rule: of RULES.
        studies, seeds: their number.
        deviations: of the baseline, and of each arm.
        shown: how many arms, the first ones, do differ from the baseline, and by far.
    """
    difference = draw(np.random.default_rng(17), studies, seeds, deviations)
    difference[..., :shown] += 1000
    return float(rejected(difference, rule)[:, shown:].any(axis=1).mean())


def power(
    rule: str, studies: int, seeds: int, arms: int, effect: float = EFFECT, twin: bool = False
) -> np.ndarray:
    """The share of studies in which a rule tells each arm from the baseline, [arms].

    Args:
        rule: of RULES.
        studies, seeds: their number.
        arms: that all have the effect.
        effect: in deviations of a run.
        twin: whether differences are to the mean of two baselines.
    """
    deviations = [np.sqrt(0.5) if twin else 1.0] + [1.0] * arms
    difference = draw(np.random.default_rng(18), studies, seeds, deviations) + effect
    return rejected(difference, rule).mean(axis=0)


def contradicted(difference: np.ndarray, size: float, rule: str) -> np.ndarray:
    """Which arms contradict a finding of this size, [studies, arms].

    They are decided and of the other sign, or not decided, and the interval excludes the size. In
    an order, what follows an arm that is not decided is not tested at all.
    """
    seeds, arms = difference.shape[1:]
    p = adjusted(paired_p(difference), rule == "order")
    tested = np.ones(p.shape, bool)
    if rule == "order":
        tested[:, 1:] = p[:, :-1] < LEVEL
    value, error = difference.mean(axis=1), difference.std(axis=1, ddof=1) / np.sqrt(seeds)
    other = (p < LEVEL) & (np.sign(value) != np.sign(size))
    short = (p >= LEVEL) & excludes(value, error, seeds, size, arms)
    return tested & (other | short)


def contradiction_rate(
    rule: str, studies: int, seeds: int, deviations: Sequence[float], size: float
) -> float:
    """The share of studies that contradict any finding, where all are as true as in the paper.

    Args:
        rule: `order` or `Holm`.
        studies, seeds: their number.
        deviations: of the baseline, and of each arm.
        size: of all differences, in deviations of a run.
    """
    difference = draw(np.random.default_rng(19), studies, seeds, deviations) + size
    return float(contradicted(difference, size, rule).any(axis=1).mean())


def secondary_error_rate(
    studies: int,
    seeds: int,
    deviations: Sequence[float],
    correlation: float,
    shown: bool = False,
) -> float:
    """The share of studies with a false verdict in the family of the secondary endpoints.

    Args:
        studies, seeds: their number.
        deviations: of the baseline, and of each arm.
        correlation: of any two metrics of a run.
        shown: whether all arms do differ from the baseline in the first metric, and by far.
    """
    rng = np.random.default_rng(20)
    runs = studies, seeds, len(deviations)
    shared = rng.normal(size=runs)
    values = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(
        size=(METRICS, *runs)
    )
    values *= np.asarray(deviations)
    difference = values[..., 1:] - values[..., :1]  # [metrics, studies, seeds, arms]
    difference[0] += 1000 * shown
    endpoints = [paired_p(each) for each in difference[:2]]
    findings = [paired_p(each)[:, :1] for each in difference[2:]]
    steps = np.stack(
        [difference[3, ..., 0] - difference[3, ..., 1], difference[3, ..., 1]], axis=-1
    )
    p = np.concatenate([*endpoints, *findings, ranking_p(steps)[:, None]], axis=1)
    false = slice(difference.shape[-1] if shown else 0, None)
    return float((adjusted(p, ordered=False) < LEVEL)[:, false].any(axis=1).mean())


def ranking_p(steps: np.ndarray) -> np.ndarray:
    """p of a ranking, [studies], whose steps [studies, seeds, steps] are all above 0 if it holds.

    It agrees if every step is told from 0, and contradicts if one is below 0 at the level for all
    of them together.
    """
    alone, above = paired_p(steps), steps.mean(axis=1) > 0
    agrees = np.where(above, alone, 2 - alone).max(axis=1)
    contradicts = (steps.shape[2] * np.where(above, 2 - alone, alone)).min(axis=1)
    return np.minimum(1, np.minimum(agrees, contradicts))


def cases(arms: int) -> list[tuple[str, list[float]]]:
    """Which deviation is unequal, and those of the baseline and of each arm."""
    found = [("all equal", [1.0] * (arms + 1))]
    for who, place in (("the baseline's", 0), ("one arm's", 1)):
        for times in DEVIATIONS:
            if times != 1:
                deviations = [1.0] * (arms + 1)
                deviations[place] = times
                found.append((f"{who} {times:g} times", deviations))
    return found


def table(header: str, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    lines = [f"| {header} | " + " | ".join(map(str, SEEDS)) + " |", "|---|" + "---|" * len(SEEDS)]
    lines += [
        f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |"
        for name, values in rows
    ]
    return "\n".join(lines)


def secondary_table(studies: int) -> str:
    """Errors of the family of the secondary endpoints, in %, by seeds."""
    rows = []
    for arms in (2, 5):
        for name, deviations in cases(arms):
            if not name.endswith((" equal", " 3 times")):
                continue
            for correlation in CORRELATIONS:
                for shown in (False, True):
                    truth = "all arms differ in one metric" if shown else "no arm differs"
                    rates = [
                        secondary_error_rate(studies, seeds, deviations, correlation, shown)
                        for seeds in SEEDS
                    ]
                    rows.append((f"{arms}, {name}, {correlation:g}, {truth}", rates))
    return table("arms, deviation, correlation of metrics, truth", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often verdicts err, and their power.")
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument(
        "--secondary", action="store_true", help="only the table of the secondary endpoints"
    )
    parser.add_argument(
        "--looks", action="store_true", help="only the table of studies that end by rule"
    )
    options = parser.parse_args()
    studies = options.studies
    if options.looks:
        print(looks.table(studies))
        return
    print(f"Secondary endpoints: errors in %, by seeds\n\n{secondary_table(studies)}")
    for arms in () if options.secondary else (2, 5):
        for shown in (0, 1):
            truth = "no arm differs" if not shown else "the first arm differs by far"
            print(f"\n{arms} comparisons, {truth}: errors in %, by seeds\n")
            rows = [
                (
                    f"{rule}, {name}",
                    [error_rate(rule, studies, seeds, deviations, shown) for seeds in SEEDS],
                )
                for name, deviations in cases(arms)
                for rule in RULES
            ]
            print(table("rule, deviation", rows))
        print(f"\n{arms} comparisons, all arms differ by {EFFECT:g} deviations: power in %\n")
        rows = []
        for rule in RULES:
            for twin in (False, True):
                each = [power(rule, studies, seeds, arms, twin=twin) for seeds in SEEDS]
                control = ", mean of two baselines" if twin else ""
                rows.append((f"{rule}, first arm{control}", [of[0] for of in each]))
                rows.append((f"{rule}, all arms' mean{control}", [of.mean() for of in each]))
        print(table("rule", rows))
        print(f"\n{arms} findings that are all true: contradicted in %, by seeds\n")
        rows = [
            (
                f"{rule}, {name}, {size:g} deviations",
                [contradiction_rate(rule, studies, seeds, deviations, size) for seeds in SEEDS],
            )
            for name, deviations in cases(arms)
            if name.endswith((" equal", " 3 times"))
            for size in SIZES
            for rule in ("order", "Holm")
        ]
        print(table("rule, deviation, the paper's size", rows))


if __name__ == "__main__":
    main()
