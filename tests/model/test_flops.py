"""Operations counted from shapes against those that torch counts as they happen."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from moebench.model.flops import forward_flops, step_flops
from moebench.model.transformer import MoETransformer, initialize


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("experts", [(8, 2), (4, 4)])
def test_they_are_what_torch_counts(experts: tuple[int, int], shared: int):
    num_experts, top_k = experts
    model = MoETransformer(
        vocab_size=256,
        d_model=32,
        num_layers=3,
        num_heads=2,
        num_experts=num_experts,
        top_k=top_k,
        expert_dim=16,
        num_shared_experts=shared,
    )
    initialize(model, 0)
    tokens = torch.arange(4 * 13).view(4, 13)
    with FlopCounterMode(display=False) as counter:
        logits, routing = model(tokens[:, :-1])
    forward = counter.get_total_flops()
    assert forward == 4 * sum(forward_flops(model, 12).values())
    with FlopCounterMode(display=False) as counter:
        logits, routing = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        (loss + routing.prob_mass.square().sum()).backward()
    assert counter.get_total_flops() == step_flops(model, 4, 12)


def test_active_operations_do_not_depend_on_how_many_experts_there_are():
    def of(num_experts: int) -> dict[str, int]:
        model = MoETransformer(
            vocab_size=64,
            d_model=32,
            num_layers=1,
            num_heads=2,
            num_experts=num_experts,
            top_k=2,
            expert_dim=16,
        )
        return forward_flops(model, 8)

    few, many = of(8), of(64)
    assert many.pop("router") == 8 * few.pop("router")
    assert few == many
