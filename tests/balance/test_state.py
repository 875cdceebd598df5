"""Estimators of f against a plain loop over steps, and the schedule of terms."""

import itertools

import pytest
import torch
from torch import Tensor

from moebench.balance import (
    BalanceState,
    Domain,
    Estimator,
    Global,
    Micro,
    Routing,
    Scope,
    Shuffled,
    Term,
)
from tests.routings import random_routing

STEPS = 4
SEQUENCES, LAYERS, EXPERTS = 8, 2, 6


def routing_of(step: int) -> Routing:
    return random_routing(seed=step)[1]


def domain_of(step: int) -> Tensor:
    """Three domains, of which a step lacks one now and then."""
    return torch.tensor([0, 1, 0, 0, 1, 1, 0, 2 if step % 2 else 0])


def frequencies(scope: Scope, estimator: Estimator) -> list[Tensor]:
    """The f of each step, carried from one to the next."""
    state: BalanceState | None = None
    found = []
    for step in range(STEPS):
        groups = scope.groups(
            SEQUENCES,
            5,
            domain=domain_of(step),
            generator=torch.Generator().manual_seed(step),
            pass_bsz=estimator.prefix,
        )
        if state is None and estimator.carries:
            state = estimator.begin(LAYERS, groups.num_groups, EXPERTS)
        tally = groups.tally(routing_of(step))
        found.append(estimator.frequency(groups, tally, state))
        if state is not None:
            state = estimator.update(state, groups.by_group(tally))
    return found


def counted(step: int, group: list[int]) -> Tensor:
    """[layers, experts] assignments of some sequences, one by one."""
    index = routing_of(step).expert_index
    found = torch.zeros(LAYERS, EXPERTS, dtype=torch.float64)
    for layer, sequence in itertools.product(range(LAYERS), group):
        for expert in index[layer, sequence].flatten().tolist():
            found[layer, expert] += 1
    return found


def share(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("pass_bsz", [1, 2, 4, 8])
def test_buffer_is_the_running_sum_of_algorithm_1(size: int, pass_bsz: int) -> None:
    for step, found in enumerate(frequencies(Global(size), Estimator("buffer", pass_bsz))):
        for start in range(0, SEQUENCES, size):
            running = torch.zeros(LAYERS, EXPERTS, dtype=torch.float64)
            for sequence in range(start, start + size):
                if sequence % pass_bsz == 0 or sequence == start:
                    # a logical pass begins: all of its sequences are counted at once
                    end = min(sequence // pass_bsz * pass_bsz + pass_bsz, start + size)
                    running += counted(step, list(range(sequence, end)))
                assert torch.allclose(found[:, sequence].double(), share(running))


def test_the_prefix_of_a_domain_is_that_of_its_own_sequences() -> None:
    for step, found in enumerate(frequencies(Domain(3), Estimator("buffer", pass_bsz=2))):
        domain = domain_of(step).tolist()
        for sequence in range(SEQUENCES):
            end = sequence // 2 * 2 + 2
            own = [each for each in range(end) if domain[each] == domain[sequence]]
            assert torch.allclose(found[:, sequence].double(), share(counted(step, own)))


def test_a_shuffled_prefix_draws_from_the_passes_that_were_seen() -> None:
    groups = Shuffled(2).groups(SEQUENCES, 5, pass_bsz=4)
    assert groups.drawn is not None
    assert groups.drawn.shape == (4, 10)
    assert (groups.drawn[:2] < 20).all()
    assert (groups.drawn[2:] >= 20).any()
    assert all(len(row.unique()) == 10 for row in groups.drawn)


@pytest.mark.parametrize("size", [2, 8])
def test_stale_takes_the_last_step_and_begins_uniform(size: int) -> None:
    exact = frequencies(Global(size), Estimator())
    stale = frequencies(Global(size), Estimator("stale"))
    assert torch.equal(stale[0], torch.full((LAYERS, SEQUENCES, EXPERTS), 1 / EXPERTS))
    for before, found in itertools.pairwise(range(STEPS)):
        assert torch.equal(stale[found], exact[before])


def test_ema_is_the_moving_average_of_what_steps_counted() -> None:
    exact = frequencies(Global(4), Estimator())
    average = torch.full((LAYERS, SEQUENCES, EXPERTS), 1 / EXPERTS)
    for step, found in enumerate(frequencies(Global(4), Estimator("ema", decay=0.75))):
        assert torch.allclose(found, average)
        average = 0.75 * average + 0.25 * exact[step]


def test_a_window_adds_the_counts_of_the_steps_before() -> None:
    for step, found in enumerate(frequencies(Micro(2), Estimator(window_steps=3))):
        for sequence in range(SEQUENCES):
            group = list(range(sequence // 2 * 2, sequence // 2 * 2 + 2))
            window = sum(counted(each, group) for each in range(max(0, step - 2), step + 1))
            assert isinstance(window, Tensor)
            assert torch.allclose(found[:, sequence].double(), share(window))


def test_a_window_goes_with_every_estimator() -> None:
    for name in ("buffer", "stale", "ema"):
        wide = Estimator(name, pass_bsz=2, window_steps=3, decay=0.5)
        narrow = Estimator(name, pass_bsz=2, decay=0.5)
        one, other = frequencies(Global(), wide)[-1], frequencies(Global(), narrow)[-1]
        assert torch.allclose(one.sum(-1), torch.ones(LAYERS, SEQUENCES))
        assert not torch.allclose(one, other)


def test_a_domain_that_a_step_lacks_keeps_its_frequency() -> None:
    stale = frequencies(Domain(3), Estimator("stale"))
    own = routing_of(1).counts[:, 7].float()  # the one sequence of domain 2 in step 1
    groups = Domain(3).groups(SEQUENCES, 5, domain=domain_of(3))
    assert domain_of(2).max() == 1
    assert torch.equal(stale[3][:, 7], own / own.sum(-1, keepdim=True))
    assert groups.num_groups == 3


def test_an_update_leaves_the_state_before_it_alone() -> None:
    estimator = Estimator("ema", decay=0.5, window_steps=2)
    state = estimator.begin(LAYERS, 1, EXPERTS)
    kept = [part.clone() for part in state]
    after = estimator.update(state, routing_of(0).counts.sum(1, keepdim=True))
    assert all(torch.equal(one, other) for one, other in zip(state, kept, strict=True))
    assert after.past.shape == state.past.shape == (1, LAYERS, 1, EXPERTS)
    assert not torch.equal(after.average, state.average)


def test_tallies_of_parts_add_up_exactly() -> None:
    routing = routing_of(0)
    for scope in (Global(4), Domain(3), Shuffled(2), Shuffled(2, 4)):
        groups = scope.groups(SEQUENCES, 5, domain=domain_of(1))
        parts = []
        for start in (0, 3, 4):
            end = {0: 3, 3: 4, 4: 8}[start]
            part = routing._replace(
                expert_index=routing.expert_index[:, start:end],
                counts=routing.counts[:, start:end],
            )
            parts.append(groups.tally(part, start))
        assert torch.equal(sum(parts[1:], parts[0]), groups.tally(routing))


# Terms


def weights(term: Term, steps: int = 12) -> list[float]:
    return [round(term.weight_at(step), 6) for step in range(1, steps + 1)]


def test_a_term_without_moments_always_acts() -> None:
    assert weights(Term(Global(), 2.0)) == [2.0] * 12


def test_a_term_that_stops_hands_over_without_a_gap() -> None:
    assert weights(Term(Global(), 1.0, stop=5)) == [1.0] * 5 + [0.0] * 7
    assert weights(Term(Global(), 1.0, start=5)) == [0.0] * 5 + [1.0] * 7
    assert weights(Term(Global(), 1.0, start=2, stop=4)) == [0, 0, 1, 1] + [0] * 8


@pytest.mark.parametrize("ramp", [0, 1, 2, 3, 5])
def test_the_weights_of_a_handover_sum_to_a_constant(ramp: int) -> None:
    before, after = Term(Global(), 3.0, stop=4, ramp=ramp), Term(Micro(2), 3.0, start=4, ramp=ramp)
    both = [one + other for one, other in zip(weights(before), weights(after), strict=True)]
    assert both == pytest.approx([3.0] * 12)


def test_a_ramp_is_a_line() -> None:
    assert weights(Term(Global(), 1.0, start=0, ramp=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert weights(Term(Global(), 1.0, stop=2, ramp=4), 7) == [1, 1, 0.75, 0.5, 0.25, 0, 0]
