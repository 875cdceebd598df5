"""Every scope gives each sequence the frequency of its group, and nothing else."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moebench.balance import Domain, Global, Micro, Scope, Sequence, Shuffled, make_scope
from moebench.errors import ConfigError
from tests.routings import random_routing

SCOPES = [Sequence(), Micro(2), Micro(4), Global(), Global(4), Global(2)]


@pytest.mark.parametrize("scope", SCOPES)
def test_frequency_is_that_of_the_groups_own_tokens(scope: Global) -> None:
    _, routing = random_routing()
    size = scope.size or 8
    found = scope.frequency(routing)
    for layer in range(2):
        for sequence in range(8):
            start = sequence // size * size
            count = torch.zeros(6)
            for index in routing.expert_index[layer, start : start + size].flatten().tolist():
                count[index] += 1
            assert torch.equal(found[layer, sequence], count / count.sum())


@pytest.mark.parametrize("scope", [*SCOPES, Domain(), Shuffled(2), Shuffled(2, 4), Shuffled(8)])
def test_rows_sum_to_one_without_gradient_in_fp32(scope: Scope) -> None:
    _, routing = random_routing()
    domain = torch.tensor([0, 0, 1, 2, 0, 1, 1, 1])
    found = scope.frequency(routing, domain=domain)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.allclose(found.sum(-1), torch.ones(2, 8))


def test_floating_counts_keep_their_dtype() -> None:
    _, routing = random_routing()
    routing = routing._replace(counts=routing.counts.double())
    assert Global().frequency(routing).dtype == torch.float64
    assert Shuffled(2).frequency(routing).dtype == torch.float64


def test_domain_groups_by_label_wherever_the_sequences_stand() -> None:
    _, routing = random_routing()
    domain = torch.tensor([3, 1, 3, 3, 1, 1, 3, 2])
    found = Domain().frequency(routing, domain=domain)
    for sequence in range(8):
        own = routing.counts[:, domain == domain[sequence]].sum(1).float()
        assert torch.equal(found[:, sequence], own / own.sum(-1, keepdim=True))
    with pytest.raises(ConfigError, match="needs the domain"):
        Domain().frequency(routing)


def test_sequence_equals_micro_of_one_bit_for_bit() -> None:
    _, routing = random_routing()
    assert torch.equal(Sequence().frequency(routing), Micro(1).frequency(routing))
    assert torch.equal(Micro(4).frequency(routing), Global(4).frequency(routing))


def test_shuffling_the_whole_step_equals_global_exactly() -> None:
    _, routing = random_routing(tokens=7)
    assert torch.equal(Shuffled(8).frequency(routing), Global().frequency(routing))
    assert torch.equal(Shuffled(4, 4).frequency(routing), Micro(4).frequency(routing))


def test_shuffled_draws_without_replacement_one_draw_a_micro_batch() -> None:
    """Mean and variance over draws are those of the hypergeometric distribution."""
    _, routing = random_routing(layers=1, sequences=4, tokens=8, experts=4, top_k=1)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack(
        [Shuffled(1).frequency(routing, generator=generator)[0] for _ in range(4000)]
    ).double()
    pool, size = 32, 8
    share = routing.counts.sum(1)[0].double() / pool
    variance = share * (1 - share) / size * (pool - size) / (pool - 1)
    error = (variance / draws.shape[0]).sqrt()
    assert ((draws.mean(0) - share).abs() < 4.5 * error).all()
    ratio = draws.var(0)[:, variance > 0] / variance[variance > 0]
    assert (ratio - 1).abs().max() < 0.15
    assert not torch.equal(draws[:, 0], draws[:, 1]), "micro-batches draw for themselves"


def test_shuffled_is_keyed_by_its_generator_and_shared_by_layers() -> None:
    _, routing = random_routing(layers=1)
    twice = routing._replace(
        **{
            name: torch.cat([value, value])
            for name, value in routing._asdict().items()
            if value is not None
        }
    )

    def draw(seed: int) -> torch.Tensor:
        return Shuffled(2).frequency(twice, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(draw(0)[0], draw(0)[1])


def test_shuffled_keeps_to_its_pool() -> None:
    _, routing = random_routing()
    found = Shuffled(2, 4).frequency(routing)
    for start in (0, 4):
        absent = routing.counts[:, start : start + 4].sum(1) == 0
        assert (found[:, start : start + 4].transpose(0, 1)[:, absent] == 0).all()


@settings(deadline=None)
@given(
    size=st.sampled_from([1, 2, 3, 4, 6, 12]),
    seed=st.integers(0, 5),
)
def test_groups_of_any_divisor_average_to_the_whole(size: int, seed: int) -> None:
    _, routing = random_routing(sequences=12, seed=seed)
    mean = Global(size).frequency(routing).mean(1)
    whole = Global().frequency(routing)[:, 0]
    assert torch.allclose(mean, whole, atol=1e-6)


@pytest.mark.parametrize(
    "scope",
    [Global(3), Micro(5), Shuffled(3), Shuffled(2, 3), Global(0), Micro(0), Shuffled(2, 0)],
)
def test_sizes_that_do_not_divide_are_refused(scope: Scope) -> None:
    _, routing = random_routing()
    with pytest.raises(ConfigError, match="must divide"):
        scope.frequency(routing)


def test_make_scope_knows_every_name() -> None:
    def made(name: str, size: int | None = None) -> Scope | None:
        return make_scope(name, micro_bsz=4, balance_bsz=size)

    assert made("none") is None
    assert made("sequence") == Sequence()
    assert made("micro") == Micro(4)
    assert made("global", 16) == Global(16)
    assert made("shuffled", 16) == Shuffled(4, 16)
    assert made("domain") == Domain()
    with pytest.raises(ConfigError, match=r"scope=local: no such scope; .*here are none, sequence"):
        made("local")
    for name in ("none", "sequence", "micro", "domain"):
        with pytest.raises(ConfigError, match=f"balance_bsz=8: the groups of the scope {name} "):
            made(name, 8)
