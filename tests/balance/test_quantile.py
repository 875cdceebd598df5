"""Quantile balancing: the worked example, sorting, and the union of ranks."""

import math

import pytest
import torch
from torch import Tensor

from moebench.balance import Steering, join, observe
from moebench.balance.assignment import top_k_mask
from moebench.balance.bias import BiasState
from moebench.balance.quantile import Quantile, margins, quantile_bias
from moebench.errors import ConfigError
from moebench.model.gate import Name
from moebench.model.router import Gating, Router

SCORES = torch.tensor(
    [[2.0, 0.5, -2.0, -1.0], [2.0, 3.0, 0.5, -1.0], [0.0, 2.0, -0.5, -1.0], [2.0, 0.0, -1.5, -1.0]]
)


def loads(scores: Tensor, bias: Tensor) -> list[int]:
    return top_k_mask(scores + bias, 2).sum(-2).tolist()


def test_one_update_evens_the_worked_example() -> None:
    zero = torch.zeros(4)
    assert loads(SCORES, zero) == [4, 4, 0, 0]
    found = margins(SCORES, zero, 2)
    assert found[:, 0].tolist() == [3.0, 1.5, 0.5, 3.0]
    bias = quantile_bias(found, 2)
    assert bias.tolist() == [-1.0, -1.0, 1.0, 1.0]  # (-1.5, -1.5, 0.5, 0.5) less its mean
    assert loads(SCORES, bias) == [2, 2, 2, 2]


def test_the_quantile_is_that_of_the_union_and_no_mean() -> None:
    """Margins of one expert of two, on two ranks of two tokens each."""
    ranks = [torch.tensor([3.0, 1.5]), torch.tensor([0.5, 3.0])]
    other = torch.zeros(4)

    def quantile(values: Tensor) -> float:
        """b of the expert less b of the other one, whose margins are all 0."""
        first, second = quantile_bias(torch.stack([values, other[: len(values)]], -1), 1).tolist()
        return second - first

    assert sum(map(quantile, ranks)) / 2 == 1.0
    assert quantile(torch.cat(ranks)) == 1.5


def test_the_bias_is_that_of_sorting() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 50, 3, generator=draw)
    values[0, :10] = values[0, 10:20]  # ties
    expected = -values.sort(1, descending=True).values[:, 50 * 2 // 3]
    expected -= expected.mean(-1, keepdim=True)
    assert quantile_bias(values, 2).equal(expected)


def test_the_method_takes_the_whole_step() -> None:
    """Its update is that of all sequences' tokens together, and a decay averages it."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 16, 8, generator=draw)
    parts = [observe(each, top_k=2) for each in logits]
    routing = join(parts, along="layers")._replace(scores=logits.softmax(-1))
    method = Quantile()
    state = method.begin(2, 8)
    after = method.update(state, routing)
    whole = logits.softmax(-1).flatten(1, 2)
    assert after.expert_bias.equal(quantile_bias(margins(whole, torch.zeros(8), 2), 2))
    half = Quantile(decay=0.5).update(state, routing)
    assert torch.allclose(half.expert_bias, after.expert_bias / 2)
    steering = method.steering(after)
    assert steering.bias is after.expert_bias


def test_updates_converge_to_an_even_load() -> None:
    """From loads far from even: the exact dual update, repeated on the same tokens."""
    draw = torch.Generator().manual_seed(2)
    scores = torch.randn(256, 8, generator=draw) + 2 * torch.randn(8, generator=draw)
    bias = torch.zeros(8)
    before = max(loads(scores, bias))
    for _ in range(20):
        bias = quantile_bias(margins(scores, bias, 2), 2)
    assert before > 150
    assert max(loads(scores, bias)) <= 66  # where 64 is even


def test_all_experts_selected_leaves_no_threshold() -> None:
    with pytest.raises(ConfigError, match="fewer than 4"):
        margins(SCORES, torch.zeros(4), 4)


def test_margins_are_a_loop() -> None:
    bias = torch.tensor([0.3, -0.2, 0.1, -0.2])
    found = margins(SCORES, bias, 2)
    for token in range(4):
        biased = sorted((SCORES[token] + bias).tolist(), reverse=True)
        for expert in range(4):
            expected = SCORES[token, expert].item() - biased[2]
            assert math.isclose(found[token, expert].item(), expected, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("gate", "logits", "expected"),
    [
        ("softmax", 0, 0.2311),  # the probabilities of two experts
        ("sigmoid", 0, 0.1155),  # Kimi K3
        ("softmax", 1, 0.5),  # Megatron-LM, whatever the gate
        ("sigmoid", 1, 0.5),
        ("topk_softmax", 0, 0.5),  # which selects by logits itself
    ],
)
def test_it_reads_the_scores_of_the_gate_or_raw_logits(
    gate: Name, logits: int, expected: float
) -> None:
    """Of the logits (0, -4) and (0, -1): both tokens select expert 0, until the second is free."""
    method = Quantile(logits=logits)
    gating = Gating(gate, by_logits=method.by_logits, observes=method.observes)
    router = Router(2, 2, 1, gating).double()
    router.weight.data = torch.tensor([[0.0, 0.0], [-4.0, -1.0]]).double()
    tokens = torch.eye(2).double()[None]
    before = method.begin(1, 2)
    found = router(tokens, method.steering(before).layer(0))
    after = method.update(before, found.routing)
    assert found.expert_index.flatten().tolist() == [0, 0]
    assert after.expert_bias.flatten().tolist() == pytest.approx([-expected, expected], abs=5e-5)
    # the bias is in the unit of what it is added to: the second token is at its threshold
    lower = after.expert_bias + torch.tensor([[-1e-3, 0.0]])
    moved = router(tokens, Steering(bias=lower[0].double()))
    assert moved.expert_index.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("logits", [0, 1])
@pytest.mark.parametrize("experts", [3, 4, 2])
def test_experts_that_are_not_there_change_nothing(logits: int, experts: int) -> None:
    """The bias of the others is that of a router without them; 2 experts leave no choice."""
    method, mask = Quantile(logits=logits), torch.arange(6)[None] < experts
    draw = torch.Generator().manual_seed(3)
    weight, tokens = (torch.randn(n, 4, generator=draw).double() for n in (6, 12))
    biases = []
    for rows, steering in ((6, Steering(mask=mask)), (experts, Steering())):
        gating = Gating(by_logits=method.by_logits, observes=method.observes)
        router = Router(4, rows, 2, gating).double()
        router.weight.data = weight[:rows]
        bias = torch.tensor([[0.1, -0.1, 0.4, -0.4, 9, 9]])[:, :rows]
        found = router(tokens.view(2, 6, 4), steering.layer(0)).routing
        if rows == 2:
            biases.append(torch.zeros(1, 2))
        else:
            biases.append(method.update(BiasState(bias), found, steering.mask).expert_bias)
    assert torch.allclose(biases[0][:, :experts], biases[1], atol=1e-6)
    assert not biases[0][:, experts:].any()
    assert biases[1].any() == (experts > 2)
