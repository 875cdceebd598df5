"""Studies that end by rule: how often they err, by simulation, and what their seeds resolve."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.looks import ARMS, EVERY, GAP, MARGIN, MOST, RULE, SAME, draw, ends, worst
from moebench.errors import ConfigError
from moebench.looks import LEVELS, looks, reached
from moebench.report.infer.contrasts import contrast, equality
from moebench.report.infer.power import noise_of, resolved, seeds_for
from moebench.report.infer.stopping import DECIDED, OPEN, WITHIN, outcome

STUDIES = 4000
NONE = (0.0,) * ARMS


def above(level: float) -> float:
    """What a share of studies of this probability stays below, but for one case in 30,000."""
    return level + 4 * math.sqrt(level * (1 - level) / STUDIES)


def test_levels_add_up_to_5_percent_and_looks_are_whole() -> None:
    assert sum(LEVELS) == pytest.approx(0.05)
    assert [look.seeds for look in looks(16)] == [4, 8, 16]
    assert [reached(16, begun).number for begun in (0, 4, 5, 8, 9, 16, 20)] == [1, 1, 2, 2, 3, 3, 3]
    for most in (8, 14):
        with pytest.raises(ConfigError, match=f"--most-seeds: {most} seeds; .* a multiple of 4"):
            looks(most)


@pytest.mark.parametrize("deviations", [(1.0, 1, 1, 1), (3.0, 1, 1, 1), (1.0, 3, 1, 1)])
def test_the_rule_errs_in_5_percent_of_studies_at_most(deviations: tuple[float, ...]) -> None:
    for margin in (0.0, 1.0):
        found = ends(draw(STUDIES, NONE, deviations), RULE, margin)
        assert found.decided.any(1).mean() < above(0.05)
    shown = ends(draw(STUDIES, (1.25, 0, 0), deviations), RULE)
    assert shown.decided[:, 1:].any(1).mean() < above(0.05)


def test_looks_at_5_percent_each_err_more_often() -> None:
    """By far: so the rule's levels are what keeps the error."""
    difference = draw(STUDIES, NONE)
    assert ends(difference, SAME).decided[:, 0].mean() > 0.1
    assert ends(difference, EVERY).decided[:, 0].mean() > 0.13


def test_a_difference_of_the_margin_is_seldom_called_none() -> None:
    for margin in (1.0, 2.0):
        found = ends(draw(STUDIES, (margin, 0, 0)), RULE, margin)
        assert 0.001 < found.within.mean() < above(0.025)
        assert not (found.within & found.decided.any(1)).any()
        assert (found.within | found.decided[:, 1:].any(1)).mean() < above(0.05)


def test_the_worst_margin_errs_more_often_than_one_of_a_deviation() -> None:
    found = ends(draw(STUDIES, (1.0, 0, 0)), RULE, 1.0)
    shown = (found.within | found.decided[:, 1]).mean()
    assert shown < worst(STUDIES)[1] < above(0.05)


@pytest.mark.parametrize(("effect", "power"), [(1.0, 0.70), (1.25, 0.88), (1.5, 0.97)])
def test_power_of_sixteen_seeds(effect: float, power: float) -> None:
    found = ends(draw(STUDIES, (effect, 0, 0)), RULE)
    assert found.decided[:, 0].mean() == pytest.approx(power, abs=0.025)
    assert found.seeds.mean() < MOST


def test_the_simulation_ends_studies_as_the_report_does() -> None:
    for effect, margin in ((0.0, 1.5), (1.5, 1.0)):
        difference = draw(60, (effect, 0, 0))
        found = ends(difference, RULE, margin)
        for study in range(len(difference)):
            values = np.column_stack([np.zeros(MOST), difference[study, :, 0]])
            told, seeds = OPEN, 0
            for look in looks(MOST):
                if told == OPEN:
                    measured = contrast(values[: look.seeds], np.array([-1.0, 1.0]))
                    seeds = look.seeds
                    told = outcome(measured, measured.estimate().p, look, margin)
            assert found.seeds[study] == seeds
            assert found.decided[study, 0] == (told == DECIDED)
            assert found.within[study] == (told == WITHIN)


def test_the_simulation_decides_an_equality_as_the_report_does() -> None:
    ends_of = set()
    for effect in (0.0, 1.0, 2.5):
        difference = draw(40, (effect, GAP, 0))
        found = ends(difference, RULE, MARGIN, equality=True)
        for study, (arm, worse) in enumerate(difference[..., :2].transpose(0, 2, 1)):
            values = np.column_stack([arm, np.zeros(MOST), worse])
            told, equal, seeds = OPEN, False, 0
            for look in looks(MOST):
                if told == OPEN:
                    test, seeds = equality(values[: look.seeds], 0, 1, 2, 1), look.seeds
                    told = outcome(test.difference, min(test.equal, test.unequal), look, MARGIN)
                    equal = told == DECIDED and test.equal <= test.unequal
            assert found.seeds[study] == seeds
            assert found.decided[study, 0] == (told == DECIDED)
            assert found.within[study] == (told == WITHIN)
            assert found.equal[study] == equal
            ends_of.add((told, equal))
    assert ends_of == {(DECIDED, True), (DECIDED, False), (WITHIN, False), (OPEN, False)}


@pytest.mark.parametrize("deviations", [(1.0, 1, 1, 1), (1.0, 1, 3, 1)])
def test_as_good_as_is_seldom_said_of_an_arm_that_is_not(deviations: tuple[float, ...]) -> None:
    """By a quarter of the gap or by the margin, which are equal here."""
    found = ends(draw(STUDIES, (MARGIN, GAP, 0), deviations), RULE, MARGIN, equality=True)
    wrong = found.equal | found.within | found.decided[:, 2]
    assert 0.01 < wrong.mean() < above(0.05)


def test_too_few_seeds_decide_nothing_at_a_look() -> None:
    values = np.column_stack([np.zeros(4), [1.0, 1.001, 0.999, np.nan]])
    measured = contrast(values, np.array([-1.0, 1.0]))
    assert outcome(measured, measured.estimate().p, looks(16)[0], None) == OPEN
    assert outcome(measured, None, looks(12)[0], None) == OPEN
    assert outcome(measured, measured.estimate().p, looks(12)[0], None) == DECIDED


@pytest.mark.parametrize("seeds", [12, 16, 40])
def test_resolved_differences_have_a_power_of_80_percent(seeds: int) -> None:
    noncentral = stats.nct(seeds - 1, resolved(seeds) * math.sqrt(seeds))
    critical = stats.t.ppf(1 - LEVELS[-1] / 2, seeds - 1)
    assert noncentral.sf(critical) == pytest.approx(0.8, abs=1e-6)


def test_seeds_for_an_effect_are_the_fewest_that_resolve_it() -> None:
    for effect, sd in ((0.004, 0.006), (0.02, 0.006)):
        seeds = seeds_for(effect, sd)
        assert seeds is not None
        assert seeds % 4 == 0
        assert resolved(seeds) * sd <= effect
        assert seeds == 12 or resolved(seeds - 4) * sd > effect
    assert seeds_for(1e-9, 1.0) is None


def test_the_bound_of_a_deviation_holds_in_four_of_five_cases() -> None:
    drawn = np.random.default_rng(0).normal(size=(4000, 6))
    found = [noise_of(each) for each in drawn]
    assert np.mean([each.upper > 1 for each in found]) == pytest.approx(0.8, abs=0.025)
    assert np.mean([each.sd**2 for each in found]) == pytest.approx(1, abs=0.05)
