"""Shifts within a sequence: quantiles and averages against loops, and no look ahead."""

import pytest
import torch
from torch import Tensor

from moebench.balance import Method, Steering, join, observe
from moebench.balance.moving import CausalBias, MovingQuantile, averages, moving_quantile
from moebench.balance.quantile import margins, quantile_bias
from moebench.model.router import Gating, Router

METHODS: dict[str, Method] = {
    "moving quantile": MovingQuantile(strength=1.0, memory=0.8, bins=10),
    "causal bias": CausalBias(strength=2.0, memory=0.8),
}


def scores_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_moving_quantile_is_a_loop_over_bins() -> None:
    scores, memory, bins, share = scores_of(2, 12, 3), 0.8, 10, 0.4
    found = moving_quantile(scores, share, memory, bins)
    for sequence in range(2):
        for expert in range(3):
            histogram = [0.0] * bins
            for token in range(12):
                histogram = [memory * each for each in histogram]
                histogram[int(scores[sequence, token, expert] * bins)] += 1 - memory
                reached = [sum(histogram[: n + 1]) / sum(histogram) for n in range(bins)]
                place = next(n for n in range(bins) if reached[n] >= 1 - share - 1e-12)
                expected = (place + 0.5) / bins
                assert found[sequence, token, expert].item() == pytest.approx(expected)
    assert (moving_quantile(torch.full((1, 4, 2), 0.505), 0.5, 0.99, 100) == 0.505).all()
    assert (moving_quantile(torch.ones(1, 4, 2), 0.5, 0.99, 100) == 0.995).all()


def test_a_causal_bias_is_a_loop_over_earlier_tokens() -> None:
    scores = scores_of(2, 6, 3)
    found = CausalBias(strength=2.0, memory=0.8).shift(scores, 1)
    assert (found[:, 0] == 0).all(), "the first token has none before it"
    for token in range(1, 6):
        weights = [0.8 ** (token - 1 - other) for other in range(token)]
        parts = [w * scores[:, t] / sum(weights) for t, w in enumerate(weights)]
        mean = torch.stack(parts).sum(0)
        assert torch.allclose(found[:, token], -2 * mean)
    rows = averages(4, 0.8, own=True, like=scores).sum(-1)
    assert torch.allclose(rows, torch.ones(4).double())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_no_token_sees_a_later_one_or_another_sequence(name: str, training: bool) -> None:
    method = METHODS[name]
    router = Router(6, 8, 2, Gating("sigmoid", shift=method)).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(router.weight)
    x = torch.randn(3, 10, 6, dtype=torch.float64)
    steering = Steering(bias=torch.zeros(8, dtype=torch.float64))
    index = router(x, steering, training=training).expert_index
    plain = Router(6, 8, 2, Gating("sigmoid")).double()
    plain.weight.data = router.weight.data
    assert not torch.equal(index, plain(x).expert_index), "it acts"
    for length in (1, 4, 9):
        part = router(x[1:2, :length], steering, training=training).expert_index
        assert torch.equal(part, index[1:2, :length])


def test_a_shift_evens_each_sequence_and_leaves_weights_alone() -> None:
    """Sequences that each prefer two of eight experts."""
    draw = torch.Generator().manual_seed(3)
    liked = torch.zeros(4, 1, 8).scatter(2, torch.arange(8).view(4, 1, 2), 1.0)
    x = (torch.randn(4, 64, 8, generator=draw) + 2 * liked).double()
    worst = []
    for method in (None, MovingQuantile(strength=1.0), CausalBias(strength=1.0)):
        router = Router(8, 8, 2, Gating("sigmoid", renormalize=False, shift=method)).double()
        router.weight.data = torch.eye(8).double()
        found = router(x)
        counts = found.routing.counts[0].double()
        worst.append(float((counts.amax(-1) / 16).mean()))
        chosen = x.sigmoid().gather(-1, found.expert_index)
        assert torch.allclose(found.weights, chosen)
    assert worst[0] > 3
    assert max(worst[1:]) < 0.6 * worst[0]


def test_the_bias_over_the_step_is_that_of_quantile_balancing_of_shifted_scores() -> None:
    method = MovingQuantile(strength=0.5)
    gating = Gating("sigmoid", shift=method, observes=method.observes)
    router = Router(6, 8, 2, gating)
    torch.manual_seed(0)
    torch.nn.init.normal_(router.weight)
    state = method.begin(1, 8)
    routing = router(torch.randn(3, 10, 6), method.steering(state).layer(0)).routing
    scores = routing.scores[0].detach()
    shifted = scores - 0.5 * moving_quantile(scores, 0.25, 0.99, 100)
    expected = quantile_bias(margins(shifted.flatten(0, 1), torch.zeros(8), 2), 2)
    assert torch.allclose(
        method.update(state, join([routing], along="layers")).expert_bias[0], expected
    )
    assert routing.moved.sum() > 0


def test_the_bias_leaves_out_experts_that_are_not_there() -> None:
    """Of 4 of 6 experts, each gets the tokens that quantile balancing of the 4 gives it."""
    method, scores = MovingQuantile(strength=0.0), scores_of(4, 9, 6)
    mask = torch.tensor([[True, True, False, True, True, False]])
    there = mask[0].nonzero()[:, 0]
    index = scores[..., there].topk(2, -1).indices
    routing = observe(scores, expert_index=there[index])._replace(scores=scores[None])
    found = method.update(method.begin(1, 6), routing, mask).expert_bias[0]
    few = scores[..., there].flatten(0, 1)
    expected = quantile_bias(margins(few, torch.zeros(4), 2), 2)
    assert torch.allclose(found[there], expected.float(), atol=1e-6)
    assert (found[~mask[0]] == 0).all()
