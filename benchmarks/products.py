"""The products of a training step alone: how near the step is to what this processor can reach.

Records the matrix products of one step, in shape, layout and number, and times each kind of them
alone on warm operands. Two shares follow: of the rate of a large product that the step reaches
(products of 2048 x 2048; nothing can exceed it), and of the step's time that its products would
take alone (the rest is passes over memory, calls, and caches that are cold). FLOPs are those that
are computed: causal blocks of attention, and rows of experts rounded up. One thread, process time,
in turn; the shares are medians over the rounds.

    python benchmarks/products.py [--shapes A D] [--rounds 5] [--compile] [--json] [--smoke]
"""

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from shapes import SHAPES, SMOKE, Act, Shape, moebench_step
from tables import Row, Tables, at_least_one, show
from timing import header, timed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moebench.machine import keep_freed_memory
from moebench.model import cpu_attention, cpu_experts, cpu_products

CPU = torch.device("cpu")
LARGE = 2048  # side of the large product
REPEATS = 4  # of each kind of product in a round

aten, own = torch.ops.aten, torch.ops.moebench
OPERATORS: dict[Any, Callable[..., Any]] = {  # whose insides are recorded
    own.cpu_experts.default: cpu_experts._forward,
    own.cpu_experts_backward.default: cpu_experts._backward,
    own.cpu_attention.default: cpu_attention._forward,
    own.cpu_attention_backward.default: cpu_attention._backward,
    own.cpu_linear.default: cpu_products._forward,
}
PRODUCTS = {aten.mm.default, aten.mm.out, aten.bmm.default, aten.bmm.out, aten.baddbmm_.default}
if cpu_products.ONEDNN:
    PRODUCTS.add(torch.ops.mkldnn._linear_pointwise.default)


class Layout(NamedTuple):
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype).uniform_(-1, 1)


class Product(NamedTuple):
    """A kind of product: the operator of torch, and the layouts of its matrices."""

    operator: Any
    matrices: tuple[Layout, ...]
    out: Layout | None

    @property
    def flops(self) -> int:
        left, right = self.matrices[-2:]
        columns = right.shape[0 if "linear" in str(self.operator) else -1]
        return 2 * math.prod(left.shape) * columns

    def act(self) -> Act:
        matrices = [layout.made() for layout in self.matrices]
        if "linear" in str(self.operator):
            return lambda: self.operator(*matrices, None, "none", [], "")
        if self.out is None:
            return lambda: self.operator(*matrices)
        out = self.out.made()
        return lambda: self.operator(*matrices, out=out)


class Recorder(TorchDispatchMode):
    """Counts the products of each kind that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OPERATORS:
            with self:
                return OPERATORS[func](*args, **kwargs)
        if func in PRODUCTS:
            matrices = tuple(_layout(arg) for arg in args if isinstance(arg, Tensor))
            out = kwargs.get("out")
            self.found[Product(func, matrices, None if out is None else _layout(out))] += 1
        return func(*args, **kwargs)


def _layout(matrix: Tensor) -> Layout:
    return Layout(tuple(matrix.shape), matrix.stride(), matrix.dtype)


def alone(kinds: dict[Product, int], acts: dict[Product, Act]) -> float:
    """Seconds that the products of a step take alone: of each kind, the fastest of REPEATS."""
    return sum(
        number * min(timed(acts[kind], CPU).own for _ in range(REPEATS))
        for kind, number in kinds.items()
    )


def row(shape: Shape, compute: torch.dtype, rounds: int, *, compiled: bool) -> Row:
    step = moebench_step(shape, compute, CPU, torch.compile if compiled else None)
    for _ in range(3):
        step()
    with Recorder() as recorder:  # of eager code: the compiler computes the same products
        moebench_step(shape, compute, CPU)()
    kinds = dict(recorder.found)
    acts = {kind: kind.act() for kind in kinds}
    flops = sum(number * kind.flops for kind, number in kinds.items())
    one, other = (torch.rand(LARGE, LARGE).to(compute) for _ in range(2))
    times: list[tuple[float, float, float]] = []
    for number in range(rounds + 1):
        large = min(timed(lambda: cpu_products.linear(one, other), CPU).own for _ in range(3))
        times.append((timed(step, CPU).own, alone(kinds, acts), 2 * LARGE**3 / large))
        print(f"round {number} of {rounds}", file=sys.stderr)
    taken, products, peak = zip(*times[1:], strict=True)
    middle = statistics.median
    return {
        "step": f"{str(compute).removeprefix('torch.')}{', compiled' if compiled else ''}",
        "ms": 1e3 * middle(taken),
        "ms of its products alone": 1e3 * middle(products),
        "their GFLOP/s": flops / middle(products) / 1e9,
        "GFLOP/s of a large product": middle(peak) / 1e9,
        "share of a large product's rate": middle(
            flops / one / top for one, top in zip(taken, peak, strict=True)
        ),
        "share of its products": middle(
            one / whole for whole, one in zip(taken, products, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The products of a training step alone.")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=["A", "D"])
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape, for tests")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if not args.json:
        print(f"{header(1)}, {args.rounds} rounds")
    shapes = {"smoke": SMOKE} if args.smoke else {name: SHAPES[name] for name in args.shapes}
    tables: Tables = {}
    for name, shape in shapes.items():
        if args.compile:
            torch.compiler.reset()  # else a shape after others gets code for any shape
        tables[f"{name}: {shape.tokens:,} tokens per step"] = [
            row(shape, compute, args.rounds, compiled=compiled)
            for compute in (torch.float32, torch.bfloat16)
            for compiled in ([False, True] if args.compile else [False])
        ]
    show(tables, as_json=args.json)


if __name__ == "__main__":
    main()
