"""Each peer's router selects and weighs as the class of that peer, on equal weights and tokens."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebench.balance import Steering
from moebench.config.compose import Composer
from moebench.config.treatment import Treatment
from moebench.model.router import Gating, Router, Selection
from moebench.model.transformer import Block
from moebench.train.build import make_gating

TOKENS, WIDTH, EXPERTS, K, SHARED = 12, 8, 16, 4, 2
COMPOSER = Composer()


def gating_of(words: str) -> Gating:
    shape = [f"model.num_experts={EXPERTS}", f"model.top_k={K}"]
    return make_gating(Treatment.of(COMPOSER.compose([*words.split(), *shape])))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ours(gating: Gating, bias: Tensor, **weights: Tensor) -> Selection:
    router = Router(WIDTH, EXPERTS, K, gating)
    for name, value in weights.items():
        router.get_parameter(name).data = value
    return router(normal(1, TOKENS, WIDTH), Steering(bias=bias))


def theirs(family: str, name: str, weight: Tensor, bias: Tensor | None, **config: Any) -> Any:
    """What the router of a family in `transformers` returns for the same tokens."""
    module = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    names = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS}
    names |= {"num_experts_per_tok": K, "hidden_size": WIDTH, "rms_norm_eps": 0.0}
    router = getattr(module, name)(SimpleNamespace(**(names | config)))
    state = router.state_dict()
    with torch.no_grad():
        matrix = next(key for key, value in state.items() if value.shape == weight.shape)
        state[matrix].copy_(weight)
        if bias is not None:
            state["e_score_correction_bias"].copy_(bias)
        return router(normal(1, TOKENS, WIDTH).flatten(0, 1))


def same(found: Selection, weights: Tensor, index: Tensor) -> None:
    mine = torch.zeros(TOKENS, EXPERTS).scatter(1, found.expert_index[0], found.weights[0].detach())
    other = torch.zeros(TOKENS, EXPERTS).scatter(1, index, weights.detach().float())
    assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)
    assert ((mine > 0) == (other > 0)).all()


WEIGHT, BIAS = normal(EXPERTS, WIDTH, seed=1), 0.1 * normal(EXPERTS, seed=2)


def test_a_softcap_is_that_of_laguna() -> None:
    found = ours(gating_of("router=softcap router.softcap=0.5"), BIAS, weight=WEIGHT)
    config = {"moe_router_logit_softcapping": 0.5}
    _, weights, index = theirs("laguna", "LagunaTopKRouter", WEIGHT, BIAS, **config)
    same(found, weights, index)


def test_a_bias_on_logits_is_that_of_kolibri() -> None:
    words = "method=bias_logits router=sigmoid router.renormalize=false"
    found = ours(gating_of(words), 5 * BIAS, weight=WEIGHT)
    config = {"norm_topk_prob": False}
    _, weights, index = theirs("kolibri1", "Kolibri1TopKRouter", WEIGHT, 5 * BIAS, **config)
    same(found, weights, index)
    plain = ours(gating_of("router=sigmoid"), 5 * BIAS, weight=WEIGHT)
    assert not torch.equal(plain.expert_index, found.expert_index), "the unit of a bias matters"


def test_a_scale_of_each_expert_is_that_of_gemma() -> None:
    scale = normal(EXPERTS, seed=3).exp()
    found = ours(gating_of("router=expert_scale"), torch.zeros(EXPERTS), weight=WEIGHT, scale=scale)
    module = pytest.importorskip("transformers.models.gemma4.modeling_gemma4")
    config = SimpleNamespace(
        hidden_size=WIDTH, rms_norm_eps=0.0, num_experts=EXPERTS, top_k_experts=K
    )
    router = module.Gemma4TextRouter(config)
    router.per_expert_scale.data = scale
    x = normal(1, TOKENS, WIDTH)[0]
    # the router norms its input and divides by the root of the width
    rms = x.square().mean(-1, keepdim=True).sqrt()
    router.proj.weight.data = WEIGHT * WIDTH**0.5
    _, weights, index = router(x)
    normed = Router(WIDTH, EXPERTS, K, gating_of("router=expert_scale"))
    normed.weight.data, normed.scale.data = WEIGHT, scale
    same(normed((x / rms)[None]), weights, index)
    assert found.weights.sum(-1).std() > 0.01, "weights no longer sum to 1"


def test_shared_experts_in_the_gate_are_those_of_inkling() -> None:
    shared = normal(SHARED, WIDTH, seed=4)
    gating = gating_of("experiment=inkling")
    found = ours(gating, BIAS, weight=WEIGHT, shared=shared)
    both = torch.cat([WEIGHT, shared])
    config = {"n_shared_experts": SHARED, "route_scale": 8.0}
    _, weights, index, gammas = theirs("inkling", "InklingTopkRouter", both, BIAS, **config)
    same(found, weights, index)
    assert found.shared is not None
    assert torch.allclose(found.shared[0], gammas, rtol=1e-5)
    total = found.shared.sum(-1) + found.weights.sum(-1)
    assert torch.allclose(total, torch.tensor(8.0))


def test_a_shared_expert_is_weighed_like_two_apart() -> None:
    module = pytest.importorskip("transformers.models.inkling.modeling_inkling")
    gating = gating_of("experiment=inkling")
    block = Block(WIDTH, 2, EXPERTS, K, 4, SHARED, gating=gating)
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    config = SimpleNamespace(
        n_shared_experts=SHARED, moe_intermediate_size=4, hidden_size=WIDTH, hidden_act="silu"
    )
    experts = module.InklingSharedExperts(config)
    assert block.shared is not None
    gate, up = block.shared.up.data.chunk(2)
    experts.gate_proj.data, experts.up_proj.data = gate.view(SHARED, 4, -1), up.view(SHARED, 4, -1)
    experts.down_proj.data = block.shared.down.data.view(WIDTH, SHARED, 4).transpose(0, 1)
    x, gammas = normal(1, TOKENS, WIDTH), normal(1, TOKENS, SHARED, seed=5).exp()
    assert torch.allclose(block.shared(x, gammas), experts(x, gammas), rtol=1e-4, atol=1e-5)


def test_groups_by_their_best_score_are_those_of_deepseek_v2() -> None:
    found = ours(gating_of("router=grouped_max"), torch.zeros(EXPERTS), weight=WEIGHT)
    config = {"routed_scaling_factor": 1.0, "topk_method": "group_limited_greedy"}
    config |= {"n_group": 4, "topk_group": 2}
    _, weights, index = theirs("deepseek_v2", "DeepseekV2TopkRouter", WEIGHT, None, **config)
    same(found, weights, index)


def test_the_presets_select_and_weigh_like_deepseek_v4_and_longcat() -> None:
    found = ours(gating_of("experiment=deepseek-v4"), BIAS, weight=WEIGHT)
    config = {"routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus"}
    _, weights, index = theirs("deepseek_v4", "DeepseekV4TopKRouter", WEIGHT, BIAS, **config)
    same(found, weights, index)
    found = ours(gating_of("experiment=longcat-flash"), BIAS / 10, weight=WEIGHT)
    config = {"routed_scaling_factor": 6.0, "zero_expert_num": 4, "n_routed_experts": EXPERTS - 4}
    name = "LongcatFlashTopkRouter"
    _, weights, index = theirs("longcat_flash", name, WEIGHT, BIAS / 10, **config)
    same(found, weights, index)


def test_zero_computation_experts_return_their_input_like_longcats() -> None:
    module = pytest.importorskip("transformers.models.longcat_flash.modeling_longcat_flash")
    zero = 4
    block = Block(WIDTH, 2, EXPERTS, K, 4, 0, zero_experts=zero, gating=Gating())
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    config = SimpleNamespace(
        expert_ffn_hidden_size=4,
        hidden_size=WIDTH,
        zero_expert_num=zero,
        n_routed_experts=EXPERTS - zero,
        hidden_act="silu",
    )
    experts = module.LongcatFlashExperts(config)
    with torch.no_grad():
        experts.gate_up_proj[: EXPERTS - zero] = block.experts.up.transpose(1, 2)
        experts.down_proj.copy_(block.experts.down.transpose(1, 2))
    x = normal(TOKENS, WIDTH)
    chosen = block.router(x[None])
    assert (chosen.expert_index >= EXPERTS - zero).any()
    assert len(block.experts.up) == EXPERTS - zero
    found = block._mixed(x[None], chosen.expert_index, chosen.weights)
    expected = experts(x, chosen.expert_index[0], chosen.weights[0])
    assert torch.allclose(found[0], expected, rtol=1e-4, atol=1e-5)
