"""Plans: what typed words and a study come to, before anything starts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.errors import ConfigError, DataError, RecordError
from moebench.study import Plan, make_plan, read_plan
from moebench.study.axes import cells_of

Small = Callable[..., list[str]]
STUDY = """\
question: Which?
overrides: [loss.balance=0.5, optim=adamw, optim.lr=0.25, data.max_epochs=7, 'seed=0,1']
arms: [scope=micro, scope=global balance_bsz=8, scope=global, "scope=none loss.z=0.1,0.2"]
baseline: micro
size: short
sizes: {short: [train.steps=6], long: [train.steps=7, optim.lr=0.125]}
"""


@pytest.fixture
def composer(tmp_path: Path) -> Composer:
    """One with a study of its own."""
    path = tmp_path / "presets" / "study" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(STUDY)
    (path.parent.parent / "optim").mkdir()
    (path.parent.parent / "optim" / "slow.yaml").write_text("lr: 0.001\n")
    return Composer(path.parent.parent)


def plan_of(composer: Composer, overrides: list[str]) -> Plan:
    return make_plan(composer, overrides)


def arms(plan: Plan) -> list[str]:
    return list(dict.fromkeys(job.arm for job in plan.jobs))


# Planning


def test_a_sweep_is_exactly_its_grid(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("scope=micro,global", "seed=2,0,1", "train.steps=6"))
    assert [(job.arm, job.seed) for job in plan.jobs] == [
        (arm, seed) for seed in (0, 1, 2) for arm in ("micro", "global")
    ]
    assert (plan.name, plan.baseline, plan.primary) == ("sweep", "micro", "valid/nats")
    assert len({job.arm_hash for job in plan.jobs}) == 2
    assert len({job.run for job in plan.jobs}) == 6


def test_a_sweep_of_one_value_is_a_sweep(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("scope=choice(none)", "train.steps=6"))
    assert (plan.name, arms(plan)) == ("sweep", ["none"])


def test_one_treatment_under_two_names_is_one_run(composer: Composer, small: Small) -> None:
    overrides = small("scope=micro,global", "balance_bsz=4", "train.steps=6", "optim.lr=1e-3,0.001")
    assert arms(plan_of(composer, overrides)) == ["micro"]
    assert len(plan_of(composer, overrides).jobs) == 1


def test_a_study_is_its_arms_with_its_overrides_and_size(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine"))
    assert (plan.name, plan.question, plan.size, plan.baseline) == (
        *("mine", "Which?", "short", "micro"),
    )
    assert arms(plan) == ["micro", "global", "z-loss"]
    assert len(plan.jobs) == 2 * 4, "global by its size and by default is one arm"
    assert {job.config["loss"]["balance"] for job in plan.jobs} == {0.5}
    assert {job.config["train"]["steps"] for job in plan.jobs} == {6}
    assert {job.config["optim"]["lr"] for job in plan.jobs} == {0.25}
    long = plan_of(composer, small("study=mine", "study.size=long"))
    assert {job.config["train"]["steps"] for job in long.jobs} == {7}
    assert {job.config["optim"]["lr"] for job in long.jobs} == {0.125}


def test_what_is_typed_wins_over_a_study(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine", "seed=7", "train.steps=9", "optim=slow"))
    assert {job.seed for job in plan.jobs} == {7}
    assert {job.config["train"]["steps"] for job in plan.jobs} == {9}
    assert {job.config["optim"]["lr"] for job in plan.jobs} == {0.001}, "a preset over its keys"
    assert {job.config["data"]["max_epochs"] for job in plan.jobs} == {7}, "and over no other"


def test_a_sweep_is_crossed_with_a_study(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine", "seed=0", "train.steps=6,8"))
    assert len(plan.jobs) == 2 * 4


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["scope=none"], "scope=none: study=mine varies scope itself; leave it out, or sweep over"),
        (["loss.z=1"], "loss.z=1: study=mine varies loss.z itself; leave it out"),
        (["study=mine"], "study: is set twice (mine and mine); keep one"),
        (["study=demo"], "study: is set twice (mine and demo); keep one"),
        (["study.size=huge"], "study.size=huge: study=mine has no such size; it has short, long"),
        (["study.baseline=x"], "study.baseline=x: is the label of no arm; choose one of micro, "),
        (["study.name=x"], "study.name=x: no such key"),
        (["study.sizes.short=[]"], "study.sizes.short=[]: no such key"),
        (["study.arms=[]"], "study.arms=[]: is empty; give at least one"),
        (["study.arms=[scope=micr]"], "study.arms=[scope=micr]: does not parse"),
        (
            ["study.arms=['scope=micr']"],
            "study=mine: scope=micr: no such scope; did you mean micro?",
        ),
        (["modle=tiny"], "modle=tiny: no such key; did you mean model?"),
        (
            ["loss.balance=0"],
            "study.baseline=micro: is the label of no arm; choose one of none, z-loss, as in "
            """'study.baseline="none"'""",
        ),
        (["seed=0", "seed=1"], "seed: is set twice (seed=0 and seed=1); keep one"),
    ],
)
def test_what_does_not_go_with_a_study_is_one_line(
    composer: Composer, small: Small, typed: list[str], error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(composer, small("study=mine", *typed))
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize(
    ("typed", "arm"),
    [
        ([], "micro"),
        (["router=sigmoid"], "micro sigmoid"),
        (["method=bias"], "micro + bias"),
        (["router=sigmoid", "study.baseline=global"], "global sigmoid"),
        (["router=sigmoid", "study.baseline='global sigmoid'"], "global sigmoid"),
        (["experiment=megatron-micro"], "micro layers=sum"),
        (["experiment=megatron-micro", "study.baseline=z-loss"], "z-loss"),
    ],
)
def test_the_baseline_follows_words_typed_for_all_arms(
    composer: Composer, small: Small, typed: list[str], arm: str
) -> None:
    """Which need not stand in all labels: an arm without a loss has no `layers`."""
    plan = plan_of(composer, small("study=mine", "seed=0", *typed))
    assert plan.baseline == arm
    assert arm in arms(plan)


def test_a_baseline_that_no_arm_is_is_not_replaced_by_its_twin(
    composer: Composer, small: Small
) -> None:
    twins = "study.arms=['scope=global','scope=micro router.perturb=1e-6']"
    with pytest.raises(ConfigError, match=r"study\.baseline=micro: is the label of no arm"):
        make_plan(composer, small("study=mine", twins, "experiment=megatron-micro"))


@pytest.mark.parametrize(
    ("arms", "typed", "varies"),
    [
        ("'loss=paper','loss=balance'", "loss.z=1", "loss"),
        ("'method=bias','method=bias_proportional'", "method.options.rate=0.5", "method"),
        ("'method=bias method.options={rate:0.1}'", "method.options.rate=0.5", "method"),
        ("'scope=micro router.gate=sigmoid'", "router.gate=softmax", "router.gate"),
        ("'scope=micro router.gate=sigmoid'", "router=softmax_raw", "router.gate"),
    ],
)
def test_an_arm_of_a_study_that_sets_a_key_wins_over_no_typed_one(
    composer: Composer, small: Small, arms: str, typed: str, varies: str
) -> None:
    overrides = small("study=mine", f"study.arms=[{arms}]", "seed=0")
    with pytest.raises(ConfigError) as caught:
        make_plan(composer, [*overrides, typed])
    assert str(caught.value).startswith(f"{typed}: study=mine varies {varies} itself")


def test_a_typed_key_goes_with_arms_whose_presets_do_not_set_it(
    composer: Composer, small: Small
) -> None:
    arms = "study.arms=['router=sigmoid scope=micro','scope=global']"
    arms_of = ("study=mine", arms, "study.baseline=global", "seed=0")
    plan = plan_of(composer, small(*arms_of, "router.init=10"))
    assert [job.config["router"]["init"] for job in plan.jobs] == [10, 10]
    assert {job.arm for job in plan.jobs} == {"micro sigmoid", "global"}, (
        "no word of what is shared"
    )
    with pytest.raises(
        ConfigError, match=r"^router\.gate=softmax: study=mine varies router itself"
    ):
        make_plan(composer, small(*arms_of, "router.gate=softmax"))


def test_a_typed_preset_goes_with_arms_whose_keys_it_switches_off(
    composer: Composer, small: Small
) -> None:
    """As twins, by `router.perturb`, of which `router=softmax_raw` sets 0."""
    arms_of = "study.arms=['scope=micro','scope=micro router.perturb=1e-6']"
    plan = plan_of(composer, small("study=mine", arms_of, "seed=0", "router=softmax_raw"))
    assert [job.config["router"]["perturb"] for job in plan.jobs] == [0, 1e-6]
    assert not any(job.config["router"]["renormalize"] for job in plan.jobs)


def test_an_experiment_that_takes_presets_goes_with_a_study(composer: Composer) -> None:
    _, cells, _ = cells_of(composer, ["study=demo", "experiment=tiny-bpe"])
    assert {"experiment=tiny-bpe" in cell for cell in cells} == {True}


def test_a_plan_whose_data_do_not_suffice_is_refused(composer: Composer, small: Small) -> None:
    with pytest.raises(DataError, match=r"data\.max_epochs=4: train\.steps=100000 would read"):
        make_plan(composer, small("seed=0,1", "train.steps=100000"))


def test_a_plan_is_named_by_its_runs_and_what_they_are_for(
    composer: Composer, small: Small
) -> None:
    plan = plan_of(composer, small("seed=0,1", "train.steps=6"))
    again = plan_of(composer, small("train.steps=6", "seed=1,0", "scope=global"))
    assert plan.slug == again.slug
    ids = {job.run: job.id for job in plan.jobs}
    assert ids == {run: number for number, run in enumerate(sorted(ids))}
    assert ids == {job.run: job.id for job in again.jobs}, "whichever of them was written last"
    assert [plan.job(number).run for number in range(2)] == sorted(ids)
    with pytest.raises(RecordError, match=f"^2: no such job in the plan {plan.slug}$"):
        plan.job(2)
    assert plan.slug.startswith("sweep-")
    assert plan_of(composer, small("seed=0,2", "train.steps=6")).slug != plan.slug
    base = plan_of(composer, small("study=mine", "study.baseline=z-loss"))
    assert base.slug != plan_of(composer, small("study=mine")).slug


def test_a_plan_of_a_study_is_read_as_it_was_written(
    composer: Composer, small: Small, tmp_path: Path
) -> None:
    plan = plan_of(composer, small("study=mine"))
    assert read_plan(plan.write(tmp_path / "runs")) == plan


def test_planning_needs_no_torch(small: Small) -> None:
    code = (
        "import sys; from moebench.config.compose import Composer\n"
        "from moebench.study import make_plan\n"
        "make_plan(Composer(), sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    words = small("seed=0,1", "train.steps=6")
    subprocess.run([sys.executable, "-c", code, *words], check=True)
