"""The experts of a layer, forward and backward: torch's grouped product against the Triton kernels.

Both take turns in one process on the same inputs, and are compared by the median of their paired
ratios. The script also prints how far the output and the gradients of Triton are from those of
torch, as a share of the largest value. It needs a GPU of compute capability 8.0 or newer and
Triton; elsewhere it says what is missing.

    python benchmarks/experts.py [--shapes A C D wide] [--rounds 20] [--json]
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from tables import Row, at_least_one, reason, show
from timing import device_here, header, timed
from torch import Tensor

from moebench.model.experts import Experts
from moebench.train.expert_kernels import automatic, interpreted, trouble


class Layer(NamedTuple):
    tokens: int
    d_model: int
    num_experts: int
    top_k: int
    expert_dim: int


SHAPES = {
    "A": Layer(4096, 256, 16, 4, 128),  # a layer of shape A of race.py, and so on
    "C": Layer(4096, 256, 64, 8, 64),
    "D": Layer(1024, 128, 8, 2, 128),
    "stack": Layer(8192, 128, 128, 2, 128),  # eight arms of D, each with its own experts
    "wide": Layer(16384, 1024, 64, 8, 512),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = (("fp32", False), ("fp32", True), ("bf16", False))  # and whether TF32 is allowed

Entrant = Callable[[], list[Tensor]]


def entrants(layer: Layer, dtype: torch.dtype, device: torch.device) -> dict[str, Entrant]:
    """Forward and backward of the same experts by both kernels; each returns all results."""
    draw = torch.Generator().manual_seed(0)
    experts = Experts(layer.num_experts, layer.d_model, layer.expert_dim)
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * weight.shape[1] ** -0.5)
    experts.to(device)
    scores = torch.rand(layer.tokens, layer.num_experts, generator=draw)
    weights, index = (each.to(device) for each in scores.topk(layer.top_k))
    x, upstream = (
        torch.randn(layer.tokens, layer.d_model, generator=draw).to(device, dtype) for _ in range(2)
    )
    inputs = [x.requires_grad_(), weights.requires_grad_(), *experts.parameters()]

    def entrant(fused: bool) -> list[Tensor]:
        experts.fused = fused
        out = experts(x, index, weights)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    return {"torch": lambda: entrant(False), "Triton": lambda: entrant(True)}


def row(name: str, precision: str, tf32: bool, rounds: int, device: torch.device) -> Row:
    """The times of forward and backward, their ratio, and how far the results are apart."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    both = entrants(SHAPES[name], PRECISIONS[precision], device)
    apart = max(
        float((one.double() - other.double()).abs().max() / one.double().abs().max())
        for one, other in zip(*(each() for each in both.values()), strict=True)
    )
    times = [[timed(act, device).own for act in both.values()] for _ in range(rounds)]
    ours, theirs = (1e3 * statistics.median(each[number] for each in times) for number in (1, 0))
    ratio = statistics.median(torch_s / triton_s for torch_s, triton_s in times)
    taken = "Triton" if automatic(precision, device) == "triton" else "torch"
    words = precision + (", TF32" if tf32 else "")
    times_of = {"torch ms": theirs, "Triton ms": ours, "torch / Triton": ratio}
    return {"shape": name, "precision": words, **times_of, "apart": apart, "auto takes": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description="The experts by torch and by Triton.")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--rounds", type=at_least_one, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = device_here()
    missing = "would compute on the CPU under TRITON_INTERPRET=1" if interpreted() else ""
    if missing := missing or trouble("fp32", device):
        print(f"skipped: run.experts=triton {missing}", file=sys.stderr if args.json else None)
        sys.exit(int(args.json))
    if not args.json:
        print(f"{header(torch.get_num_threads(), 'triton')}, {args.rounds} rounds")
    rows, failed = [], []
    for name in args.shapes:
        for precision, tf32 in CASES:
            print(f"{name}, {precision}{', TF32' * tf32}", file=sys.stderr)
            try:
                rows.append(row(name, precision, tf32, args.rounds, device))
            except Exception as error:  # the other cases are timed
                failed.append({"shape": name, "precision": precision, "failed": reason(error)})
    tables = {"Experts, forward and backward": rows, "Failed": failed}
    show({title: rows for title, rows in tables.items() if rows}, as_json=args.json)
    sys.exit(int(bool(failed)))


if __name__ == "__main__":
    main()
