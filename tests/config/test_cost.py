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
    # torch counts no custom operators: of these, by the rows that come in and what a row costs
    grouped = {
        torch.ops.moebench.grouped_mm: lambda rows, matrices, *_, **__: (
            2 * rows[0] * matrices[1] * matrices[2]
        ),
        torch.ops.moebench.grouped_outer: lambda left, right, *_, **__: (
            2 * left[0] * left[1] * right[1]
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=grouped) as counter:
        logits, routing = model(tokens, steering, training=True)
        (logits.sum() + routing.prob_mass.square().sum()).backward()
    assert counter.get_total_flops() == training_flops(config, 40) * tokens.numel()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(config, 40)
