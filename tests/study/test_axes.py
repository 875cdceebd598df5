"""The axes of a sweep: what is zipped, left out, repeated over seeds, and how runs are called."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.config.compose import Composer
from moebench.errors import ConfigError
from moebench.study import Axes, Plan, make_plan, read_plan
from moebench.study.tuned import without_seed

Small = Callable[..., list[str]]
STUDY = """\
question: Which?
overrides: [loss.balance=0.5]
arms: [scope=micro, scope=global]
exclude: [scope=global model=smoke optim.lr=0.1]
baseline: micro
size: two
sizes:
  one: [train.steps=6]
  two: ['train.steps:optim.lr=6:0.1,7:0.2']
"""


@pytest.fixture
def composer(tmp_path: Path) -> Composer:
    path = tmp_path / "presets" / "study" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(STUDY)
    return Composer(path.parent.parent)


def plan_of(composer: Composer, words: list[str], axes: Axes = Axes()) -> Plan:  # noqa: B008
    return make_plan(composer, words, axes)


def test_arms_of_a_grid_are_called_by_what_differs(
    composer: Composer, small: Small, tmp_path: Path
) -> None:
    words = small("scope=micro,global", "loss.balance=0.1,0.05", "seed=0,1", "train.steps=6")
    plan = plan_of(composer, words)
    assert sorted({job.arm for job in plan.jobs}) == [
        *("global loss.balance=0.05", "global loss.balance=0.1"),
        *("micro loss.balance=0.05", "micro loss.balance=0.1"),
    ]
    assert {job.label for job in plan.jobs} == {"micro", "global"}
    assert all(job.run.startswith(f"{job.label}-s{job.seed}-") for job in plan.jobs)
    assert all(job.title == f"{job.run}  {job.differs}" for job in plan.jobs)
    first = next(job for job in plan.jobs if job.label == "micro")
    assert (plan.baseline, plan.baseline_hash()) == ("micro", first.arm_hash)
    assert read_plan(plan.write(tmp_path / "runs")) == plan
    alone = plan_of(composer, small("scope=micro", "loss.balance=0.1,0.05", "seed=0"))
    assert [job.arm for job in alone.jobs] == ["micro loss.balance=0.1", "micro loss.balance=0.05"]
    apart = plan_of(composer, small("scope=micro,global", "seed=0"))
    assert [job.arm for job in apart.jobs] == ["micro", "global"]


def test_seeds_are_counted_from_0(composer: Composer, small: Small) -> None:
    words = small("scope=micro,global", "train.steps=6")
    plan = plan_of(composer, words, Axes(seeds=3))
    assert [job.seed for job in plan.jobs] == [0, 0, 1, 1, 2, 2]
    listed = plan_of(composer, [*words, "seed=0,1,2"])
    assert (plan.slug, plan.jobs) == (listed.slug, listed.jobs)
    study = plan_of(composer, small("study=mine", "study.size=one"), Axes(seeds=2))
    assert (study.name, len(study.jobs)) == ("mine", 4)


def test_a_grid_has_the_name_that_it_is_given(composer: Composer, small: Small) -> None:
    words = small("scope=micro,global", "train.steps=6")
    plan = plan_of(composer, words, Axes(name="rates"))
    unnamed = plan_of(composer, words)
    assert plan.slug == unnamed.slug.replace("sweep-", "rates-")
    assert [job.run for job in plan.jobs] == [job.run for job in unnamed.jobs]


def test_runs_are_left_out(composer: Composer, small: Small) -> None:
    words = small("scope=none,micro", "optim.lr=0.1,0.2", "train.steps=6")
    kept = plan_of(composer, words, Axes(exclude=("scope=none optim.lr=2e-1",)))
    assert [job.arm for job in kept.jobs] == ["none", "micro optim.lr=0.1", "micro optim.lr=0.2"]
    kept = plan_of(composer, words, Axes(exclude=("optim.lr=0.1", "scope=none")))
    assert [job.arm for job in kept.jobs] == ["micro"]
    kept = plan_of(composer, words, Axes(exclude=("scope:optim.lr=none:0.1,micro:0.2",)))
    assert [job.arm for job in kept.jobs] == ["none", "micro"]


def test_a_study_zips_and_leaves_out(composer: Composer, small: Small) -> None:
    plan = plan_of(composer, small("study=mine", "seed=0"))
    assert [(job.label, job.differs) for job in plan.jobs] == [
        ("micro", "train.steps=6 optim.lr=0.1"),
        ("micro", "train.steps=7 optim.lr=0.2"),
        ("global", ""),
    ]
    typed = plan_of(composer, small("study=mine", "seed=0", "train.steps:optim.lr=8:0.3"))
    assert {job.config["train"]["steps"] for job in typed.jobs} == {8}
    both = plan_of(composer, small("study=mine", "seed=0", "train.steps=8", "optim.lr=0.3"))
    assert {job.run for job in both.jobs} == {job.run for job in typed.jobs}


@pytest.mark.parametrize(
    ("typed", "axes", "error"),
    [
        (["seed=0,1"], Axes(seeds=2), "--seeds 2: seed=0,1 sets the seeds, too; keep one"),
        (["scope=micro,none"], Axes(name="a/b"), "--name a/b: is no name of a folder"),
        (["scope=micro,none"], Axes(name="demo"), "--name demo: is the name of a study"),
        (["study=mine"], Axes(name="a"), "--name a: study=mine has its own name"),
        (["scope=micro,none"], Axes(exclude=("scope=global",)), "--exclude scope=global: no run h"),
        (["scope=micro,none"], Axes(exclude=("scope=glob",)), "scope=glob: no such scope; did you"),
        (["scope=micro,none"], Axes(exclude=("",)), "--exclude: is empty; give overrides"),
        (["scope=micro,none"], Axes(exclude=("'",)), "--exclude ': does not parse"),
        (["scope=micro,none"], Axes(exclude=("model=smoke",)), "--exclude model=smoke: leaves out"),
        (["study=mine", "optim.lr=1"], Axes(), "optim.lr: is set by train.steps:optim.lr=6:0.1,7"),
    ],
)
def test_what_is_no_axis_is_one_line(
    composer: Composer, small: Small, typed: list[str], axes: Axes, error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(composer, small(*typed), axes)
    assert str(caught.value).startswith(error)
    assert len(caught.value.lines) == 1


def test_a_word_that_sets_more_than_the_seed_stays_without_it() -> None:
    zipped = "seed:loss.balance=0:1,1:2"
    assert without_seed(("seed=0", zipped, "seed=0,1")) == (zipped,)
