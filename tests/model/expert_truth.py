"""Experts computed slot by slot in fp64, and how far a computation in fp32 or bf16 may be off.

The bounds follow a rounding through each step (Higham, Accuracy and Stability of Numerical
Algorithms, sections 2.2 and 3.1), to first order: a sum of n products in fp32 is off by at most
n * EPS times the sum of their magnitudes, and a number that is stored by at most `unit` times its
magnitude.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 2.0**-24  # of fp32
FEW = 8  # roundings in an elementwise expression, each of at most EPS
SECOND_ORDER = 1.01


class Case(NamedTuple):
    """Experts and their inputs, in fp64 but with numbers that the tested dtype has.

    Attributes:
        x, upstream: [tokens, d_model]; upstream is the gradient of the output.
        selected, weights: [tokens, top_k].
        up: [experts, d_model, 2 * expert_dim].
        down: [experts, expert_dim, d_model].
    """

    x: Tensor
    weights: Tensor
    up: Tensor
    down: Tensor
    upstream: Tensor
    selected: Tensor


class Results(NamedTuple):
    """The output, its gradients, or a bound of the error of each."""

    out: Tensor
    x: Tensor
    weights: Tensor
    up: Tensor
    down: Tensor


def truth(case: Case) -> Results:
    """The output and its gradients, by a loop over tokens and their slots."""
    inputs = [part.detach().requires_grad_() for part in case[:4]]
    x, weights, up, down = inputs
    outputs = []
    for token, experts in enumerate(case.selected.tolist()):
        outputs.append(torch.zeros_like(x[token]))
        for copy, expert in enumerate(experts):
            gate, value = (x[token] @ up[expert]).chunk(2)
            hidden = F.silu(gate) * value * weights[token, copy]
            outputs[-1] = outputs[-1] + hidden @ down[expert]
    out = torch.stack(outputs)
    return Results(out.detach(), *torch.autograd.grad(out, inputs, case.upstream))


def bounds(case: Case, unit: float) -> Results:
    """The most that each result may be off, element by element.

    Args:
        unit: the relative error of a number as it is stored.
    """
    errors = Results(*(torch.zeros_like(part) for part in (case.x, *case[:4])))
    for expert in range(case.up.shape[0]):
        tokens, copies = (case.selected == expert).nonzero(as_tuple=True)
        x, upstream = case.x[tokens], case.upstream[tokens].abs()
        weight = case.weights[tokens, copies, None].abs()
        up, down = case.up[expert], case.down[expert]
        terms, width = up.shape[0], down.shape[0]
        rows = len(tokens)
        pre = x @ up
        computed = terms * EPS * (x.abs() @ up.abs())
        gate, value = pre.chunk(2, 1)
        silu, sigmoid = F.silu(gate).abs(), gate.sigmoid()
        slope = (sigmoid * (1 + gate * (1 - sigmoid))).abs()
        value, active = value.abs(), silu * value.abs()
        hidden = weight * active

        def of_active(pre_error: Tensor, value=value, silu=silu, active=active) -> Tensor:
            of_gate, of_value = pre_error.chunk(2, 1)
            return 1.1 * of_gate * value + silu * of_value + FEW * EPS * active  # |silu'| < 1.1

        kept = computed + unit * pre.abs()  # what backward reads
        of_hidden = weight * of_active(computed) + unit * hidden
        product = hidden @ down.abs()
        copy = of_hidden @ down.abs() + (width * EPS + 2 * unit + FEW * EPS) * product
        errors.out.index_add_(0, tokens, copy)

        h = (case.upstream[tokens] @ down.T).abs()
        of_h = terms * EPS * (upstream @ down.T.abs())
        of_scale = h * of_active(kept) + active * of_h + (width + FEW) * EPS * h * active
        errors.weights[tokens, copies] = of_scale.sum(1)
        of_gate, of_value = kept.chunk(2, 1)
        stored = unit + FEW * EPS
        by_value = of_h * silu + h * 1.1 * of_gate + stored * h * silu
        by_gate = of_h * value * slope + h * (of_value * slope + value * 0.5 * of_gate)
        by_gate = by_gate + h * value * (stored * slope + FEW * EPS * (1 + gate.abs()))
        of_pre = weight * torch.cat([by_gate, by_value], 1)
        by_pre = weight * torch.cat([h * value * slope, h * silu], 1)
        product = by_pre @ up.T.abs()
        copy = of_pre @ up.T.abs() + (2 * width * EPS + 2 * unit + FEW * EPS) * product
        errors.x.index_add_(0, tokens, copy)
        summed = rows * EPS + unit
        errors.up[expert] = x.abs().T @ of_pre + summed * (x.abs().T @ by_pre)
        of_hidden = weight * of_active(kept) + unit * hidden
        errors.down[expert] = of_hidden.T @ upstream + summed * (hidden.T @ upstream)
    return Results(*(SECOND_ORDER * error for error in errors))
