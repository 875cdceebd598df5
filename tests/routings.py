"""Random numbers and routings for tests, and the balance loss as a literal loop over tokens."""

import torch
from torch import Tensor

from moebench.balance import Routing, join, observe


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in fp64."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def random_routing(
    layers: int = 2,
    sequences: int = 8,
    tokens: int = 5,
    experts: int = 6,
    top_k: int = 2,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Routing]:
    """Router logits [layers, sequences, tokens, experts] that ask for a gradient, their routing."""
    generator = torch.Generator().manual_seed(seed)
    # sequences differ in the experts they like, as texts of different domains do
    liking = 2 * torch.randn(layers, sequences, 1, experts, generator=generator, dtype=dtype)
    noise = torch.randn(layers, sequences, tokens, experts, generator=generator, dtype=dtype)
    logits = (noise + liking).requires_grad_()
    return logits, route(logits, top_k)


def route(logits: Tensor, top_k: int) -> Routing:
    """The routing of router logits [layers, sequences, tokens, experts] by softmax and top-k."""
    parts = []
    for layer in logits:
        probs = layer.softmax(-1)
        parts.append(observe(layer, probs, probs.topk(top_k, dim=-1).indices))
    return join(parts, along="layers")


def literal_balance_loss(logits: Tensor, top_k: int, groups: list[list[int]]) -> float:
    """E * sum_i f_i P_i, mean over layers, token by token, for groups of sequences."""
    layers, _, tokens, experts = logits.shape
    total = 0.0
    for layer in range(layers):
        for group in groups:
            count = [0.0] * experts
            prob = [0.0] * experts
            for sequence in group:
                for token in range(tokens):
                    p = logits[layer, sequence, token].softmax(-1)
                    for expert in p.topk(top_k).indices.tolist():
                        count[expert] += 1
                    for expert in range(experts):
                        prob[expert] += p[expert].item()
            number = len(group) * tokens
            f = [assigned / (number * top_k) for assigned in count]
            mean = [mass / number for mass in prob]
            value = experts * sum(a * b for a, b in zip(f, mean, strict=True))
            total += value * len(group) / sum(map(len, groups))
    return total / layers
