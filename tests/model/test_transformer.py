"""The model against literal code, causality, initial weights and what it says of routing."""

import math

import pytest
import torch
import torch.nn.functional as F

from moebench.model.experts import Experts
from moebench.model.grouped import grouped_mm
from moebench.model.norm import rms_norm
from moebench.model.router import Gating, Router
from moebench.model.transformer import MoETransformer, causal_attention, initialize
from tests.processors import Same


def make(**changes: object) -> MoETransformer:
    shape = {
        "vocab_size": 32,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "num_experts": 4,
        "top_k": 2,
        "expert_dim": 8,
        "compute": torch.float64,
    }
    model = MoETransformer(**{**shape, **changes})  # pyright: ignore[reportArgumentType]
    initialize(model, 0)
    return model


def tokens(sequences: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(0, 32, (sequences, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_grouped_products_equal_a_loop_with_empty_groups(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 16, generator=generator).to(dtype).requires_grad_()
    matrices = torch.randn(4, 16, 8, generator=generator).to(dtype).requires_grad_()
    ends = torch.tensor([5, 5, 12, 12], dtype=torch.int32)
    found = grouped_mm(rows, matrices, ends)
    expected = torch.cat([rows[:5] @ matrices[0], rows[5:] @ matrices[2]])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-13}[dtype]
    assert torch.allclose(found, expected, atol=tolerance)
    weight = torch.randn(found.shape, generator=generator).to(dtype)
    got = torch.autograd.grad(found, (rows, matrices), weight)
    want = torch.autograd.grad(expected, (rows, matrices), weight)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, atol=10 * tolerance)
    assert (got[1][[1, 3]] == 0).all(), "an expert without tokens gets exactly no gradient"


def test_experts_equal_a_loop_over_tokens() -> None:
    torch.manual_seed(0)
    experts = Experts(4, 16, 8).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(9, 16, dtype=torch.float64)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(9)])
    weights = torch.rand(9, 2, dtype=torch.float64)
    found = experts(x, index, weights)
    for row in range(9):
        expected = torch.zeros(16, dtype=torch.float64)
        for slot in range(2):
            expert = int(index[row, slot])
            gate, value = (x[row] @ experts.up[expert]).chunk(2)
            expected += weights[row, slot] * ((F.silu(gate) * value) @ experts.down[expert])
        assert torch.allclose(found[row], expected)


@pytest.mark.parametrize("renormalize", [True, False])
def test_router_selects_the_most_probable_experts(renormalize: bool) -> None:
    torch.manual_seed(0)
    router = Router(16, 6, 2, Gating(renormalize=renormalize))
    torch.nn.init.normal_(router.weight)
    x = torch.randn(3, 5, 16)
    selection = router(x)
    probs = F.linear(x, router.weight).softmax(-1)
    best = probs.sort(-1, descending=True)
    assert torch.equal(selection.expert_index, best.indices[..., :2])
    expected = best.values[..., :2]
    if renormalize:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(selection.weights, expected)
    assert torch.allclose(selection.routing.prob_mass[0], probs.sum(1))
    assert torch.equal(selection.routing.counts[0], F.one_hot(best.indices[..., :2], 6).sum((1, 2)))
    assert torch.allclose(selection.routing.topk_mass[0], best.values[..., :2].sum((1, 2)))


def test_router_is_fp32_in_a_bf16_model() -> None:
    _, routing = make(compute=torch.bfloat16)(tokens())
    assert routing.prob_mass.dtype == torch.float32
    assert routing.logsumexp_sq.dtype == torch.float32


def test_attention_equals_torchs_own() -> None:
    q, k, v = torch.randn(3, 2, 4, 6, 8, dtype=torch.float64).unbind(0)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(causal_attention(q, k, v), expected)


def test_rms_norm_equals_torchs_own() -> None:
    x = torch.randn(5, 16, dtype=torch.float64)
    assert torch.allclose(rms_norm(x), F.rms_norm(x, (16,), eps=1e-6))
    assert torch.equal(rms_norm(torch.zeros(1, 16)), torch.zeros(1, 16))


def test_no_token_sees_a_later_one(same: Same) -> None:
    model, before = make(), tokens()
    same.given("groups", model, *before.shape)
    after = before.clone()
    after[:, 4] = (after[:, 4] + 1) % 32
    one, other = model(before)[0], model(after)[0]
    same(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def test_routing_of_a_sequence_does_not_depend_on_the_others() -> None:
    model, batch = make(), tokens(4)
    logits, routing = model(batch)
    alone_logits, alone = model(batch[2:3])
    assert torch.allclose(logits[2:3], alone_logits)
    assert torch.equal(routing.expert_index[:, 2:3], alone.expert_index)
    assert torch.allclose(routing.prob_mass[:, 2:3], alone.prob_mass)


def test_routing_has_the_documented_shapes_and_sums() -> None:
    _, routing = make()(tokens())
    assert routing.expert_index.shape == (2, 3, 7, 2)
    assert routing.counts.shape == routing.prob_mass.shape == (2, 3, 4)
    assert (routing.counts.sum(-1) == 7 * 2).all()
    assert torch.allclose(routing.prob_mass.sum(-1), torch.full((2, 3), 7.0, dtype=torch.float64))
    assert routing.prob_mass.requires_grad


def test_a_shared_expert_sees_every_token() -> None:
    model = make(num_shared_experts=2)
    model(tokens())[0].sum().backward()
    up = model.get_parameter("blocks.0.shared.up")
    assert up.shape == (2 * 2 * 8, 16)
    assert up.grad is not None
    assert up.grad.bool().any(1).all()


def test_initial_weights_are_keyed_by_seed_and_name() -> None:
    """A model that has more, or another number of experts, agrees in every weight it shares."""
    plain = dict(make().named_parameters())
    more = dict(make(num_shared_experts=1, num_layers=2).named_parameters())
    assert more.keys() > plain.keys()
    assert all(torch.equal(plain[name], more[name]) for name in plain)
    other = make()
    initialize(other, 1)
    assert not torch.equal(other.embedding, plain["embedding"])


def test_routers_may_start_wider_and_nothing_else_changes() -> None:
    plain, wide = make(num_shared_experts=1), make(num_shared_experts=1)
    initialize(wide, 0, router=4.0)
    for name, value in plain.named_parameters():
        factor = 4 if name.endswith("router.weight") else 1
        assert torch.equal(wide.get_parameter(name), factor * value), name


def test_first_guess_is_near_uniform() -> None:
    model = make(vocab_size=256, d_model=64, compute=torch.float32)
    batch = torch.randint(0, 256, (8, 33), generator=torch.Generator().manual_seed(0))
    logits, _ = model(batch[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.05)


def test_bf16_is_close_to_fp32() -> None:
    wide, narrow = make(compute=torch.float32), make(compute=torch.bfloat16)
    one, other = wide(tokens())[0], narrow(tokens())[0]
    assert other.dtype == torch.float32
    assert (one - other).abs().max() < 0.05 * one.abs().max()
