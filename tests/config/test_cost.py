"""What a step is said to cost is what torch counts, and what is kept is near it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moebench.balance import Steering
from moebench.config.compose import Composer
from moebench.config.cost import parameters, training_flops
from moebench.model.noise import keys
from moebench.train.build import make_model

SHAPES = [
    (),
    ("model.num_shared_experts=2", "model.top_k=3"),
    ("model.num_experts=4", "model.expert_dim=48", "seq_len=16"),
    ("model.dense_layers=1",),
    ("model.moe=false", "scope=none"),
    ("router.form=mlp", "router.noise=1"),
    ("router.form=cosine", "router.gate_bias=true"),
    ("router=relu", "method=remoe"),
    ("method=base", "global_bsz=4"),
]


@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_flops_and_parameters_are_those_of_the_model(words: tuple[str, ...]) -> None:
    config = Composer().compose(["model=smoke", "train.precision=fp64", *words])
    model = make_model(config, 40)
    tokens = torch.randint(0, 40, (4, config.seq_len))
    steering = Steering(noise=keys(0, len(tokens), tokens.device)) if config.router.noise else None
    # torch counts no custom operators: of these, by the rows that come in and what a row costs;
    # of attention, all scores, though blocks of later tokens are left out
    operators = torch.ops.moebench
    uncounted = {
        operators.cpu_experts: lambda x, up, down, scale, *_, **__: _experts(up, down, scale),
        operators.cpu_experts_backward: lambda grad, x, up, down, scale, *_, **__: (
            2 * _experts(up, down, scale)
        ),
        operators.cpu_attention: lambda qkv, *_, **__: _attention(*qkv),
        operators.cpu_attention_backward: lambda grad, qkv, *_, **__: 2 * _attention(*qkv),
    }
    with FlopCounterMode(display=False, custom_mapping=uncounted) as counter:
        logits, routing = model(tokens, steering, training=True)
        (logits.sum() + routing.prob_mass.square().sum()).backward()
    assert counter.get_total_flops() == training_flops(config, 40) * tokens.numel()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(config, 40)


def _experts(up: list[int], down: list[int], scale: list[int]) -> int:
    return 2 * scale[0] * (up[1] * up[2] + down[1] * down[2])


def _attention(sequences: int, tokens: int, _: int, heads: int, width: int) -> int:
    return 2 * 2 * sequences * heads * tokens * tokens * width
