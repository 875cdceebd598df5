"""Floating point operations of a training step, counted from the shapes of the model.

A product of [m, k] and [k, n] is 2 m k n operations, and its backward two such products. Counted
are the products alone, of active parameters, with attention over the whole sequence as it is
computed; norms, softmax and the optimizer are left out, as usual for the utilisation of a device
(model FLOPs utilisation, PaLM, appendix B).
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from moebench.model.transformer import MoETransformer

BACKWARD = 2  # products of a backward for each of the forward


def forward_flops(model: MoETransformer, seq_len: int) -> dict[str, int]:
    """Operations of one sequence's forward, by what they are for.

    Returns:
        `attention` (projections and products over the sequence), `router`, `experts` (selected and
        shared) and `head`.
    """
    shape = {name: tuple(each.shape) for name, each in model.named_parameters()}
    found = dict.fromkeys(("attention", "router", "experts", "head"), 0)
    for number in range(len(model.blocks)):
        own = f"blocks.{number}."
        qkv, d_model = shape[f"{own}attention.qkv"]
        found["attention"] += 2 * d_model * (qkv + d_model) + 2 * 2 * seq_len * d_model
        for name, sizes in shape.items():
            if not name.startswith(own):
                continue
            part = name.removeprefix(own)
            if part == "router.weight":
                found["router"] += 2 * sizes[0] * sizes[1]
            elif part.startswith("experts."):
                found["experts"] += 2 * model.top_k * sizes[1] * sizes[2]
            elif part.startswith("shared."):
                found["experts"] += 2 * sizes[0] * sizes[1]
    vocab, d_model = shape["head"]
    found["head"] = 2 * vocab * d_model
    return {key: value * seq_len for key, value in found.items()}


def step_flops(model: MoETransformer, sequences: int, seq_len: int) -> int:
    """Operations of a training step, forward and backward, without a counting pass."""
    return sum(forward_flops(model, seq_len).values()) * sequences * (1 + BACKWARD)


@register_flop_formula(torch.ops.moebench.grouped_mm)
def _grouped_mm(rows: tuple[int, ...], matrices: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * rows[0] * matrices[1] * matrices[2]


@register_flop_formula(torch.ops.moebench.grouped_outer)
def _grouped_outer(left: tuple[int, ...], right: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]
