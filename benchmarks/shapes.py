"""The shapes A to D, and a step of moebench on them: what several benchmarks time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from moebench.balance import Global, Term
from moebench.model.experts import Experts
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.gradients import Wrap, accumulate_gradients, forward_of
from moebench.train.step import Objective, Step

WEIGHT = 0.01  # of the balance loss

Act = Callable[[], object]


class Shape(NamedTuple):
    d_model: int
    num_heads: int
    num_experts: int
    top_k: int
    expert_dim: int
    seq_len: int
    sequences: int
    vocab_size: int
    num_layers: int = 4

    @property
    def tokens(self) -> int:
        return self.sequences * self.seq_len


SHAPES = {
    "A": Shape(256, 4, 16, 4, 128, 256, 16, 256),
    "B": Shape(256, 4, 16, 4, 128, 256, 16, 4096),
    "C": Shape(256, 4, 64, 8, 64, 256, 16, 256),
    "D": Shape(128, 2, 8, 2, 128, 128, 8, 256),
}
SMOKE = Shape(32, 2, 4, 2, 16, 16, 2, 64, 1)  # for tests


def model_of(
    shape: Shape, compute: torch.dtype, device: torch.device, seed: int = 0
) -> MoETransformer:
    model = MoETransformer(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        expert_dim=shape.expert_dim,
        compute=compute,
    )
    initialize(model, seed)
    return model.to(device)


def moebench_step(
    shape: Shape,
    compute: torch.dtype,
    device: torch.device,
    wrap: Wrap | None = None,
    *,
    triton: bool = False,
    capture: bool = False,
) -> Act:
    """A step of moebench on a shape: fp32 master weights, matrix products in `compute`.

    Args:
        triton: whether the experts are computed by the Triton kernels.
        wrap, capture: as for `step_of`.
    """
    model = model_of(shape, compute, device)
    for module in model.modules():
        if isinstance(module, Experts):
            module.fused = triton
    return step_of(model, tokens_of(shape, device), wrap, capture=capture)


def step_of(
    model: MoETransformer, tokens: Tensor, wrap: Wrap | None = None, *, capture: bool = False
) -> Act:
    """A step of a model.

    Args:
        tokens: [sequences, seq_len + 1].
        wrap: applied to the forward, as `torch.compile` is.
        capture: whether the whole step is one CUDA graph, captured once and then replayed.
    """
    forward = forward_of(model, wrap)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=capture)
    objective = Objective((Term(Global(), WEIGHT),), micro_bsz=1)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(model, objective, Step(tokens, len(tokens)), forward=forward)
        optimizer.step()

    return captured(step) if capture else step


def captured(step: Act) -> Act:
    """A step as one CUDA graph, after the steps that make its state and its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def tokens_of(shape: Shape, device: torch.device) -> Tensor:
    return random_tokens(shape.vocab_size, shape.sequences, shape.seq_len).to(device)


def random_tokens(vocab_size: int, sequences: int, seq_len: int) -> Tensor:
    """Inputs and targets: [sequences, seq_len + 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (sequences, seq_len + 1), generator=generator)
