"""Secondary endpoints and findings on routing: a family of their own, by Holm's method."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from moebench.catalogue import find
from moebench.config.compose import Composer
from moebench.errors import ConfigError
from moebench.plans import SECONDARY, read_plan
from moebench.records import Record
from moebench.report import make_report
from moebench.report.infer.arms import Table
from moebench.report.infer.metrics import ArmMetric
from moebench.report.paper.findings import findings
from moebench.report.paper.judge import judge
from moebench.report.paper.verdicts import Verdict
from moebench.study.plan import make_plan
from tests.report.paper.test_verdicts import BIAS, CLAIM, GLOBAL, MICRO, SCOPES, table

Make = Callable[..., Record]
REPLAY, LOAD, MASS, LARGEST = (*SECONDARY, "router/topk_mass", "specialization/largest_over_even")
SEEDS = 7


def measured(arms: Table, effects: Mapping[str, list[float]], sd: float = 1.0) -> Table:
    """The table with further metrics: the effects of its arms, and a deviation over seeds."""
    rng, made = np.random.default_rng(3), []
    noise = {name: sd * rng.normal(size=(len(arms.arms), SEEDS)) for name in effects}
    for i, arm in enumerate(arms.arms):
        values = {name: (of[i] + noise[name][i]).tolist() for name, of in effects.items()}
        per_seed = {name: dict(enumerate(of)) for name, of in values.items()}
        metrics = {name: ArmMetric(SEEDS, float(np.mean(of))) for name, of in values.items()}
        made.append(replace(arm, per_seed=arm.per_seed | per_seed, metrics=arm.metrics | metrics))
    return replace(arms, arms=tuple(made))


def verdict_on(number: str, arms: Table) -> Verdict:
    (found,) = (verdict for verdict in judge(arms)[1] if verdict.claim == CLAIM[number])
    return found


def test_secondary_endpoints_are_tested_apart_from_the_primary_one() -> None:
    sciences = SCOPES | {"twin": MICRO | {"router.perturb": 1e-6}}
    plain = table(sciences, [0, -0.0018, -0.04, 0.5], SEEDS, sd=1e-3, secondary=SECONDARY)
    effects = {LOAD: [0, 1.5, 1.5, 0], REPLAY: [0, 0.8, 0.1, 5]}
    judged, verdicts = judge(measured(plain, effects))
    before, _ = judge(plain)
    assert [decision.p for decision in judged.decisions.values()] == [
        decision.p for decision in before.decisions.values()
    ]
    tests = [(name, arm) for name in SECONDARY for arm in ("global", "shuffled")]
    alone = [
        stats.ttest_rel(
            [*judged.arm(arm).per_seed[name].values()],
            [*judged.arm("micro").per_seed[name].values()],
        ).pvalue
        for name, arm in tests
    ]
    expected = np.asarray(multipletests(alone, method="holm")[1])
    for (name, arm), p in zip(tests, expected, strict=True):
        assert judged.secondary_decisions[name][arm].p == pytest.approx(p)
        assert judged.arm(arm).metrics[name].p == pytest.approx(p)
    twin = judged.secondary_decisions[LOAD]["twin"]
    assert (twin.p, twin.withheld) == (None, "it is the noise floor")
    assert {verdict.metric for verdict in verdicts} == {"valid/nats"}


def test_no_secondary_verdict_before_six_seeds_or_too_early() -> None:
    few = measured(table(SCOPES, [0, 0, 0], SEEDS, secondary=SECONDARY), {LOAD: [0, 9, 9]})
    early, _ = judge(replace(few, too_early="step 5 of 400"))
    assert {d.p for d in early.secondary_decisions[LOAD].values()} == {None}
    arms = tuple(
        replace(arm, per_seed={name: {0: of[0], 1: of[1]} for name, of in arm.per_seed.items()})
        for arm in few.arms
    )
    two, _ = judge(replace(few, arms=arms))
    decision = two.secondary_decisions[LOAD]["global"]
    assert (decision.p, decision.withheld) == (None, "2 seeds, and a verdict takes 6")


@pytest.mark.parametrize(
    ("effect", "verdict"), [(5, "agrees"), (-5, "contradicts"), (0.1, "cannot tell")]
)
def test_figure_1b_and_4a_compare_global_with_micro(effect: float, verdict: str) -> None:
    arms = table({"micro": MICRO, "global": GLOBAL}, [0, 0], SEEDS)
    found = measured(arms, {LARGEST: [1, 1 + effect], MASS: [0, effect]})
    for number in ("13", "14"):
        finding = verdict_on(number, found)
        assert (finding.verdict, finding.arms) == (verdict, ("global", "micro"))
        assert (finding.paper, finding.treatment) == (None, None)
    assert verdict_on("14", found).unit == "share"


@pytest.mark.parametrize(
    ("masses", "verdict", "reason"),
    [
        ([0, 20, 10], "agrees", "the weakest step is"),
        ([0, 10, 20], "contradicts", "global is below bias"),
        ([10, 20, 0], "contradicts", "bias is below micro"),
        ([10, 20, 10.1], "cannot tell", "bias is not shown to be above micro"),
    ],
)
def test_the_order_of_figure_4a_needs_every_step(
    masses: list[float], verdict: str, reason: str
) -> None:
    arms = {"micro": MICRO, "global": GLOBAL, "bias": BIAS}
    finding = verdict_on("15", measured(table(arms, [0, 0, 0], SEEDS), {MASS: masses}))
    assert (finding.verdict, finding.arms) == (verdict, ("global", "bias", "micro"))
    assert reason in finding.reason


def test_one_percent_of_micro_is_one_test_with_the_endpoint() -> None:
    late = {"scope": "group", "start": 132, "weight": 0.001, "balance_bsz": 4}
    terms = [{"scope": "group", "balance_bsz": 128, "weight": 0.1}, late]
    plain = {key: value for key, value in GLOBAL.items() if key not in ("scope", "balance_bsz")}
    arms = table({"global": GLOBAL, "mixed": plain | {"terms": terms}}, [0, 0], SEEDS)
    arms = replace(measured(arms, {LOAD: [5, 0]}), secondary=(LOAD,))
    finding = verdict_on("17", arms)
    assert finding.verdict == "agrees"
    assert finding.p == judge(arms)[0].secondary_decisions[LOAD]["mixed"].p
    one, other = ([*arm.per_seed[LOAD].values()] for arm in arms.arms)
    assert finding.p == pytest.approx(stats.ttest_rel(one, other).pvalue)


def test_each_study_declares_metrics_and_each_finding_names_one() -> None:
    for path in sorted((Path(__file__).parents[3] / "conf" / "study").glob("*.yaml")):
        secondary = Composer().study(path.stem).secondary
        # the size of a study is chosen by tuning seeds, of which nothing is reported
        assert bool(secondary) == (path.stem != "headroom_size")
        assert all(find(name) for name in secondary)
    for finding in findings().values():
        assert find(finding.get("metric", "valid/nats"))


def test_a_plan_keeps_the_endpoints_that_a_study_declares(tmp_path: Path) -> None:
    typed = ["study=demo", "seed=0", "data=synthetic"]
    plan = make_plan(Composer(), typed)
    assert plan.secondary == SECONDARY
    assert read_plan(plan.write(tmp_path)).secondary == SECONDARY
    path = plan.path(tmp_path)
    content = {k: v for k, v in json.loads(path.read_text()).items() if k != "secondary"}
    path.write_text(json.dumps(content))
    assert read_plan(path).secondary == ()  # a study of an earlier version declared none
    with pytest.raises(ConfigError, match=r"study\.secondary=load/max_vio_mikro: is no metric"):
        make_plan(Composer(), [*typed, "study.secondary=[load/max_vio_mikro]"])
    with pytest.raises(ConfigError, match=r"study\.primary=valid/nat: is no metric; did you mean"):
        make_plan(Composer(), [*typed, "study.primary=valid/nat"])


def test_a_report_marks_and_tells_secondary_verdicts(runs: Path, run: Make) -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 3, 16), int)
    counts[:, 0, :8] = counts[:, 1, :8] = counts[:, 2, 6:14] = 5
    names = ["zh_law", "zh_verse", "code"]
    for seed in range(SEEDS):
        for name, keys, effect in (("micro", MICRO, 0.0), ("global", GLOBAL, 1.0)):
            noise = 0.01 * rng.normal(size=3)
            metrics: dict[str, Any] = {
                LOAD: 0.8 + effect + noise[0],
                REPLAY: 0.01 * effect + noise[1] / 100,
                MASS: 0.6 + 0.1 * effect + noise[2],
                "specialization/domain": 0.1 + 0.2 * effect,
            }
            more = {"domains": names, "counts": counts, "metrics": metrics}
            run(runs, name, seed, 3 + noise[0], science=keys, **more)
    report = make_report([runs])
    lines = report.brief(100)
    words = " ".join(" ".join(line.plain for line in lines).split())
    assert "from 0.80 (micro) to 1.80 (global). 1 of 1 tested difference decided at 5 %." in words
    assert "Check of the treatment: domain bits" in words
    (row,) = (line for line in lines if line.plain.startswith("global"))
    assert row.plain.count("↑") == 2
    assert " ? " in row.plain  # of the nats
    marked = [span.style for span in row.spans if row.plain[: span.end].endswith("↑")]
    assert marked == ["red", "bold"]  # MaxVio is less even; a replay cost is no better or worse
    text = " ".join(report.render().split())
    assert "Secondary endpoints; differences are to micro" in text
    assert "Findings of arXiv 2501.11873 on load and routing" in text
    assert "global: zh_law and zh_verse share most of their experts (1.00)" in text
    assert "zh_law and code least (0.25)" in text
    found = report.to_dict()
    assert found["tables"][0]["secondary"] == list(SECONDARY)
    assert found["rows"][1]["metrics"][REPLAY]["p"] < 1e-3
    mass = next(finding for finding in found["findings"] if finding["metric"] == MASS)
    assert (mass["verdict"], mass["unit"]) == ("agrees", "share")
