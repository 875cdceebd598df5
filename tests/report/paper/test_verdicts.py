"""The paper's findings: which arms they are about, and when runs agree, contradict, cannot tell."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from moebench.config.compose import Composer
from moebench.config.identity import science
from moebench.errors import RecordError
from moebench.records import Record
from moebench.report import make_report
from moebench.report.infer.arms import Arm, Table
from moebench.report.infer.metrics import ArmMetric
from moebench.report.infer.statistics import compare, seeds_needed
from moebench.report.paper.findings import BYTES, findings, paper_gap
from moebench.report.paper.judge import judge
from moebench.report.paper.verdicts import Verdict

Make = Callable[..., Record]
MICRO = {"scope": "group", "balance_bsz": 4}
GLOBAL = {"scope": "group", "balance_bsz": 128}
SHUFFLED = {"scope": "shuffled", "balance_bsz": 128}
CLAIM = {name[:2]: finding["claim"] for name, finding in findings().items()}


def by_number(
    sciences: dict[str, dict[str, Any]],
    effects: Sequence[float],
    seeds: int = 6,
    sd: float = 1e-4,
    bytes_per_token: float | None = 1.0,
    **more: Any,
) -> dict[str, Verdict]:
    """Verdicts by the number of the finding."""
    numbers = {claim: number for number, claim in CLAIM.items()}
    made = judge(table(sciences, effects, seeds, sd, bytes_per_token, **more))[1]
    return {numbers[verdict.claim]: verdict for verdict in made}


def table(
    sciences: dict[str, dict[str, Any]],
    effects: Sequence[float],
    seeds: int = 6,
    sd: float = 1e-4,
    bytes_per_token: float | None = 1.0,
    loads: Sequence[float] | None = None,
    **more: Any,
) -> Table:
    """A table of arms; `loads` are their MaxVio, with a deviation of 1 over seeds."""
    shared = {"micro_bsz": 4, "global_bsz": 128, "train.steps": 400, "loss.balance": 0.1}
    rng = np.random.default_rng(0)
    values = (
        np.array(effects)
        + rng.normal(size=(seeds, 1))
        + sd * rng.normal(size=(seeds, len(effects)))
    )
    spread = (np.arange(seeds) - (seeds - 1) / 2) / np.std(np.arange(seeds), ddof=1)
    arms = []
    for i, (name, keys) in enumerate(sciences.items()):
        per_seed = {"valid/nats": dict(enumerate(values[:, i].tolist()))}
        if loads is not None:
            per_seed["load/max_vio_micro"] = dict(enumerate((loads[i] + spread).tolist()))
        metrics = {"valid/nats": ArmMetric(seeds, float(values[:, i].mean()))}
        about = {"science": shared | keys, "per_seed": per_seed, "metrics": metrics}
        arms.append(Arm(name, name, tuple(range(seeds)), None, None, **about))
    compared = compare(values, list(sciences), range(seeds))
    first = arms[0].name
    about = {"bytes_per_token": bytes_per_token, "control": (first,), **more}
    return Table({}, tuple(arms), first, "valid/nats", compared, **about)


SCOPES = {"micro": MICRO, "global": GLOBAL, "shuffled": SHUFFLED}


def test_every_finding_is_whole() -> None:
    assert len(findings()) == 17
    for finding in findings().values():
        assert {"claim", "source", "type"} <= {*finding}
        assert finding["type"] in ("difference", "equality", "trend", "ranking", "described")
        decides = {"perplexity", "sign", "highest_first"} & {*finding}
        assert bool(decides) == (finding["type"] != "described")
    assert paper_gap() == pytest.approx(0.0159, abs=5e-5)


@pytest.mark.parametrize(
    ("effect", "sd", "verdict"),
    [
        (-0.02, 1e-3, "agrees"),
        (0.02, 1e-3, "contradicts"),
        (0.0, 1e-4, "contradicts"),  # the paper's size would have shown
        (0.0, 0.05, "cannot tell"),
    ],
)
def test_a_difference(effect: float, sd: float, verdict: str) -> None:
    finding = by_number({"micro": MICRO, "global": GLOBAL}, [0, effect], sd=sd)["01"]
    assert (finding.verdict, finding.arms) == (verdict, ("global", "micro"))
    assert finding.paper == pytest.approx([-paper_gap() / size for size in BYTES])
    assert finding.here.low is not None
    assert finding.here.high is not None
    assert finding.resolved == pytest.approx((finding.here.high - finding.here.low) / 2)
    assert finding.unit == "byte"


def test_sizes_are_in_nats_a_byte() -> None:
    token, byte = (
        by_number({"micro": MICRO, "global": GLOBAL}, [0, -0.04], bytes_per_token=size)["01"]
        for size in (None, 4.0)
    )
    assert byte.here.value == pytest.approx(token.here.value / 4)
    assert (token.unit, token.paper, token.seeds) == ("token", None, None)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0, -0.04, -0.0405], "agrees"),
        ([0, -0.04, -0.02], "contradicts"),
        ([0, -0.04, -0.03], "cannot tell"),  # at a quarter of the gap
        ([0, 0, 0], "cannot tell"),  # no gap to measure by
        ([0, 0.04, 0.04], "cannot tell"),
    ],
)
def test_an_equality(effects: list[float], verdict: str) -> None:
    finding = by_number(SCOPES, effects, sd=1e-3, seeds=6)["03"]
    assert finding.verdict == verdict
    assert finding.arms == ("shuffled", "global")


def test_a_trend_over_the_balance_batch() -> None:
    sizes = (1, 2, 4, 16, 64, 128)
    arms = {f"global-{size}": {"scope": "group", "balance_bsz": size} for size in sizes}
    falling = [-0.01 * math.log2(size) for size in sizes]
    finding = by_number(arms, falling, sd=1e-3)["04"]
    assert (finding.verdict, finding.per) == ("agrees", " a doubling")
    assert finding.here.value == pytest.approx(-0.01, abs=1e-3)
    assert by_number(arms, [-e for e in falling], sd=1e-3)["04"].verdict == "contradicts"
    assert "04" not in by_number({"micro": MICRO, "global": GLOBAL}, [0, -1])


def test_a_trend_that_bends_at_128_sequences() -> None:
    sizes = (4, 16, 64, 128, 256, 512)
    arms = {f"global-{size}": {"scope": "group", "balance_bsz": size} for size in sizes}
    x = [math.log2(size) for size in sizes]
    saturating = [-0.01 * min(place, 7) for place in x]
    finding = by_number(arms, saturating, sd=1e-4)["10"]
    assert (finding.verdict, finding.per) == ("agrees", " a doubling")
    assert finding.here.value == pytest.approx(0.01, abs=1e-3)
    # the paper: 5 doublings up to 128 sequences, and 2 beyond
    early, late = math.log(7.214 / 7.347) / 5, math.log(7.198 / 7.214) / 2
    assert finding.paper == pytest.approx([(late - early) / size for size in BYTES])
    straight = [-0.01 * place for place in x]
    assert by_number(arms, straight, sd=1e-5)["10"].verdict == "contradicts"
    assert by_number(arms, straight, sd=1e-2)["10"].verdict == "cannot tell"
    short = {name: arms[name] for name in ("global-4", "global-16", "global-64", "global-128")}
    assert "10" not in by_number(short, saturating[:4])  # nothing lies beyond


BIAS = {"scope": "none", "method.name": "bias", "loss.balance": 0.0}
SIGMOID = {"router.gate": "sigmoid"}


def test_a_bias_over_a_step_and_over_a_micro_batch() -> None:
    arms = {
        "bias": BIAS,
        "bias-4": BIAS | {"method.options": {"balance_bsz": 4.0}},
        "sigmoid bias": BIAS | SIGMOID,
        "sigmoid bias-4": BIAS | SIGMOID | {"method.options": {"balance_bsz": 4.0}},
        "faster sigmoid bias": BIAS | SIGMOID | {"method.options": {"rate": 0.01}},
    }
    verdicts_of = judge(table(arms, [-0.06, 0, -0.06, 0, 0]))[1]
    assert {finding.arms: finding.verdict for finding in verdicts_of} == {
        ("bias", "bias-4"): "agrees",
        ("sigmoid bias", "sigmoid bias-4"): "agrees",
    }
    assert verdicts_of[0].paper == pytest.approx([math.log(8.080 / 8.521) / b for b in BYTES])


def test_the_global_loss_against_a_bias() -> None:
    arms = {
        "global": GLOBAL,
        "sigmoid global": GLOBAL | SIGMOID,
        "global + bias": GLOBAL | {"method.name": "bias"},
        "bias": BIAS,
        "sigmoid bias": BIAS | SIGMOID,
        "sigmoid bias-4": BIAS | SIGMOID | {"method.options": {"balance_bsz": 4.0}},
    }
    (finding,) = (
        v for v in judge(table(arms, [-0.1, 0, 0, 0, 0, 0.1]))[1] if v.claim == CLAIM["12"]
    )
    assert (finding.arms, finding.verdict) == (("global", "sigmoid bias"), "agrees")
    assert finding.paper == pytest.approx([math.log(8.038 / 8.080) / size for size in BYTES])


def test_controls_and_other_weights_are_not_mistaken_for_arms() -> None:
    apart = {"loss.balance": 0.2}
    arms = {
        "micro": MICRO,
        "heavier global": GLOBAL | apart,
        "mixed": GLOBAL | {"data.homogeneity": 0.0},
        "twin": GLOBAL | {"router.perturb": 1e-6},
        "stale": GLOBAL | {"balance.estimator": "stale"},
    }
    assert by_number(arms, [0.0] * 5) == {}


def composed(*arms: str) -> dict[str, dict[str, Any]]:
    composer = Composer()
    configs = {arm: composer.compose(["global_bsz=32", *arm.split()]) for arm in arms}
    return {arm: science(config, "0") for arm, config in configs.items()}


def test_the_arms_of_the_shipped_studies_are_recognised() -> None:
    switch = composed(
        "scope=micro",
        "scope=micro balance.terms=[{stop:0.1},{scope:global,start:0.1}]",
        "scope=micro balance.terms=[{stop:0.5},{scope:global,start:0.5}]",
        "scope=global",
        "scope=global balance.terms=[{stop:0.5},{scope:micro,start:0.5}]",
        "scope=global balance.terms=[{},{scope:micro,weight:0.01,start:0.33}]",
        "scope=global balance.estimator=buffer balance.pass_bsz=8",
        "scope=micro data.homogeneity=0.5",
        "scope=micro data.homogeneity=0",
        "scope=shuffled",
        "scope=none",
        "scope=none method=bias",
        "scope=none method=bias method.options.balance_bsz=4",
        "scope=none method=bias router=sigmoid",
        "scope=none method=bias router=sigmoid method.options.balance_bsz=4",
    )
    verdict = by_number(switch, [0.0] * len(switch))
    every = {f"{number:02}" for number in range(1, 13)}
    assert set(verdict) == every - {"04", "10"}  # three sizes of a balance batch, and four
    assert verdict["12"].arms == ("scope=global", "scope=none method=bias router=sigmoid")
    assert len(verdict["06"].arms) == 4
    assert verdict["06"].arms[0] == "scope=global"
    assert verdict["05"].arms[-1] == "scope=micro"
    assert "estimator=buffer" in verdict["08"].arms[0]
    assert verdict["05"].paper is None


def test_a_report_tells_findings_beside_the_paper(runs: Path, run: Make) -> None:
    rng = np.random.default_rng(0)
    for seed in range(7):
        block = rng.normal()
        for name, keys, effect in (("micro", MICRO, 0.0), ("global", GLOBAL, -0.03)):
            load = {"load/max_vio_micro": 1 - 20 * effect + 0.1 * rng.normal()}
            nats = 3 + block + effect + 1e-3 * rng.normal()
            run(runs, name, seed, nats, science=keys, metrics=load)
    report = make_report([runs])
    text = " ".join(report.render().split())
    assert "Findings of arXiv 2501.11873, in nats a byte" in text
    assert "agrees" in text
    assert "-0.0040" in text
    assert re.search(r"MaxVio micro differs by \d+\.\d deviations", text)
    (finding,) = report.to_dict()["findings"]
    assert (finding["verdict"], finding["type"], finding["unit"]) == (
        "agrees",
        "difference",
        "byte",
    )
    assert finding["here"]["value"] == pytest.approx(-0.03, abs=3e-3)
    assert finding["p"] < 0.001
    assert finding["treatment"] > 2


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_fewer_than_six_seeds_bear_no_verdict(seeds: int) -> None:
    judged, verdicts = judge(table(SCOPES, [0, -1, -1], seeds=seeds))
    assert len(verdicts) == 3
    for finding in verdicts:
        assert (finding.verdict, finding.p) == ("not tested", None)
        assert finding.reason == f"{seeds} seeds, and a verdict takes 6"
        assert (finding.here.low is None) == (seeds < 3)
    assert {arm.metrics["valid/nats"].p for arm in judged.arms} == {None}


ORDER = ("02-shuffled-below-micro", "01-global-below-micro", "03-shuffled-equals-global")


def test_each_finding_of_an_order_is_tested_at_the_full_level() -> None:
    arms = table(SCOPES, [0, -0.0018, -0.04], sd=1e-3, order=ORDER)
    judged, verdicts = judge(arms)
    by_claim = {verdict.claim: verdict for verdict in verdicts}
    first, second = by_claim[CLAIM["02"]], by_claim[CLAIM["01"]]
    assert (first.verdict, second.verdict) == ("agrees", "agrees")
    nats = [arm.per_seed["valid/nats"] for arm in judged.arms]
    alone = stats.ttest_rel(list(nats[1].values()), list(nats[0].values())).pvalue
    assert second.p == pytest.approx(alone)
    assert 0.025 < alone < 0.05
    assert judged.decisions["global"].p == second.p == judged.arms[1].metrics["valid/nats"].p
    holm = {v.claim: v for v in judge(replace(arms, order=()))[1]}
    assert holm[CLAIM["01"]].p == pytest.approx(2 * alone)  # of three tests, one is decided
    assert holm[CLAIM["01"]].verdict == "cannot tell"


def test_a_finding_that_is_a_difference_to_the_baseline_is_one_test() -> None:
    judged, [finding] = judge(table({"micro": MICRO, "global": GLOBAL}, [0, -0.002], sd=2e-3))
    micro, other = (np.array([*arm.per_seed["valid/nats"].values()]) for arm in judged.arms)
    assert finding.p == pytest.approx(stats.ttest_rel(micro, other).pvalue)
    assert finding.p == judged.decisions["global"].p
    sd = float(np.std(other - micro, ddof=1)) / math.sqrt(2)
    assert finding.seeds == seeds_needed(sd, 1, paper_gap() / BYTES[0])


def test_what_follows_an_undecided_finding_is_not_tested() -> None:
    verdict = by_number(SCOPES, [0, -0.04, 0], sd=1e-2, order=ORDER)
    assert verdict["02"].verdict == "cannot tell"
    assert (verdict["01"].verdict, verdict["01"].p) == ("not tested", None)
    assert verdict["01"].reason == "a finding before it in the study's order is not decided"
    assert by_number(SCOPES, [0, -0.04, 0], sd=1e-2, order=ORDER[1:])["01"].verdict == "agrees"


def test_what_an_order_does_not_name_is_described() -> None:
    sciences = SCOPES | {"none": {"scope": "none"}}
    judged, _ = judge(table(sciences, [0, -0.04, -0.04, 1], order=ORDER))
    none = judged.decisions["none"]
    assert (none.p, none.withheld) == (None, "the study's order of findings does not name it")
    assert none.estimate.low is not None


def test_an_unknown_finding_in_an_order_is_named() -> None:
    with pytest.raises(
        RecordError, match=r"study\.order=01-global-below-mikro: is no finding; did"
    ):
        judge(table(SCOPES, [0, 0, 0], order=("01-global-below-mikro",)))


def test_a_twin_is_not_tested_and_strengthens_nothing() -> None:
    twin = SCOPES | {"twin": MICRO | {"router.perturb": 1e-6}}
    effects = [0, -0.001, -0.04]
    before, after = judge(table(SCOPES, effects, sd=1e-3)), judge(table(twin, [*effects, 0.5]))
    assert after[0].decisions["twin"].p is None
    assert after[0].decisions["twin"].withheld == "it is the noise floor"
    values = table(SCOPES, effects, sd=1e-3)
    copied = replace(
        table(twin, [*effects, 0.5], sd=1e-3),
        arms=(*values.arms, table(twin, [*effects, 0.5]).arms[3]),
    )
    assert [v.p for v in judge(copied)[1]] == [v.p for v in before[1]]


def test_too_early_withholds_verdict_and_p_but_no_interval() -> None:
    judged, verdicts = judge(table(SCOPES, [0, -1, -1], too_early="step 5 of 400"))
    for finding in verdicts:
        assert (finding.verdict, finding.reason, finding.p) == ("too early", "step 5 of 400", None)
        assert finding.here.low is not None
    assert {decision.p for decision in judged.decisions.values()} == {None}


@pytest.mark.parametrize(
    ("load", "effect", "verdict", "reason"),
    [
        (0.5, 0.0, "cannot tell", "the treatment did not take"),
        (0.5, -0.04, "agrees", "in the paper's direction"),  # it blocks no verdict
        (3.0, 0.0, "contradicts", "zero is not ruled out; the paper's size is ruled out"),
    ],
)
def test_a_null_without_a_treatment_says_so(
    load: float, effect: float, verdict: str, reason: str
) -> None:
    arms = {"micro": MICRO, "global": GLOBAL}
    found = by_number(arms, [0, effect], loads=[0, load])["01"]
    assert found.treatment == pytest.approx(load)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_no_treatment_is_asked_of_an_equality_and_of_mixed_batches() -> None:
    found = by_number(SCOPES, [0, -0.04, -0.04], sd=1e-3, loads=[0, 3, 3])
    assert (found["03"].verdict, found["03"].treatment) == ("agrees", None)
    levels = {f"micro-{h}": MICRO | {"data.homogeneity": h} for h in (0.0, 0.5)}
    judged, verdicts = judge(table({"micro": MICRO} | levels, [0, 0, 0], loads=[0, 0, 0]))
    assert judged.decisions["micro-0.0"].treatment is None
    assert [v.treatment for v in verdicts] == [None]


def test_the_order_of_a_shipped_study_begins_with_its_own_finding() -> None:
    composer = Composer()
    orders = {name: composer.study(name).order for name in composer.choices("study")}
    first = {name: order[0][:2] for name, order in orders.items() if order}
    page = (Path(__file__).parents[3] / "docs" / "reading.md").read_text(encoding="utf-8")
    own = dict(re.findall(r"^\| `(\w+)` \| (\d\d): ", page, re.MULTILINE))
    assert first == {**dict.fromkeys(first, "01"), **own}
    assert own.items() >= {"balance_bsz": "04", "estimator": "08", "local_mix": "09"}.items()
    for order in filter(None, orders.values()):
        assert {"01-global-below-micro", *order} <= {*order} & {*findings()}
