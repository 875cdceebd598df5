"""The bias of loss-free balancing against published numbers and literal loops."""

import pytest
import torch
from torch import Tensor

from moebench.balance import Routing, of_own_scores
from moebench.balance.bias import Bias, BiasState
from moebench.model.router import Gating, Router


def routing_of(counts: list[list[int]]) -> Routing:
    """Of one layer: counts [sequences, experts]."""
    found = torch.tensor([counts])
    mass = found.float()
    index = torch.zeros(1, len(counts), 1, 1, dtype=torch.long)
    return Routing(index, found, mass, mass.sum(-1))


@pytest.mark.parametrize(
    ("counts", "rate", "expected"),
    [([[10, 0]], 0.1, [-0.1, 0.1]), ([[0, 10]], 0.2, [0.2, -0.2]), ([[5, 5]], 0.1, [0, 0])],
)
def test_a_step_has_the_published_size(
    counts: list[list[int]], rate: float, expected: list[float]
) -> None:
    method = Bias(rate=rate)
    found = method.update(method.begin(1, 2), routing_of(counts))
    assert found.expert_bias.dtype == torch.float32
    assert torch.equal(found.expert_bias, torch.tensor([expected]))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("proportional", [0, 1])
@pytest.mark.parametrize("multiplicative", [0, 1])
@pytest.mark.parametrize("centred", [0, 1])
def test_a_step_equals_a_literal_loop(
    size: int, proportional: int, multiplicative: int, centred: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (3, 4, 5), generator=draw)
    start = torch.rand(3, 5, generator=draw)
    method = Bias(0.1, size, proportional, multiplicative, centred)
    routing = routing_of([[0]])._replace(counts=counts)
    found = method.update(BiasState(start), routing).expert_bias
    for layer in range(3):
        moves = [0.0] * 5
        for group in range(4 // size):
            of_group = counts[layer, group * size : (group + 1) * size].sum(0).tolist()
            mean = sum(of_group) / 5
            for expert in range(5):
                gap = mean - of_group[expert]
                move = gap / mean if proportional else (gap > 0) - (gap < 0)
                moves[expert] += 0.1 * move / (4 // size)
        if centred:
            moves = [move - sum(moves) / 5 for move in moves]
        expected = start[layer] + torch.tensor(moves)
        assert torch.allclose(found[layer], expected, atol=1e-6)
    assert torch.equal(method.begin(3, 5).expert_bias, torch.full((3, 5), float(multiplicative)))


def test_a_masked_expert_keeps_its_bias_and_counts_in_no_mean() -> None:
    method, mask = Bias(0.1, centred=1), torch.tensor([[True, True, False]])
    found = method.update(method.begin(1, 3), routing_of([[3, 1, 0]]), mask)
    assert torch.allclose(found.expert_bias, torch.tensor([[-0.1, 0.1, 0.0]]))


@pytest.mark.parametrize("multiplicative", [0, 1])
def test_it_moves_the_selection_and_neither_weights_nor_probabilities(multiplicative: int) -> None:
    torch.manual_seed(0)
    router, x = Router(8, 4, 2, Gating(renormalize=False)), torch.randn(2, 5, 8)
    torch.nn.init.normal_(router.weight)
    bias = torch.rand(4)
    steering = Bias(multiplicative=multiplicative).steering(BiasState(bias[None])).layer(0)
    found, plain = router(x, steering), router(x)
    probs: Tensor = (x @ router.weight.T).softmax(-1)
    for sequence in range(2):
        for token in range(5):
            own = probs[sequence, token]
            moved = own * bias if multiplicative else own + bias
            expected = moved.sort(descending=True).indices[:2]
            assert found.expert_index[sequence, token].tolist() == expected.tolist()
            assert torch.allclose(found.weights[sequence, token], own[expected])
    assert not torch.equal(found.expert_index, plain.expert_index)
    assert torch.equal(found.routing.prob_mass, plain.routing.prob_mass)
    # what the f of a loss counts is the selection of the scores alone, the load is the actual one
    of_scores = of_own_scores(found.routing)
    assert torch.equal(of_scores.counts, plain.routing.counts)
    assert torch.equal(of_scores.expert_index, plain.routing.expert_index)
    assert not torch.equal(found.routing.counts, plain.routing.counts)
    assert of_own_scores(plain.routing) is plain.routing
