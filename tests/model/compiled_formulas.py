"""Fails unless the compiled formulas of attention are its eager pieces, and are compiled twice.

Run by `test_cpu_operators.py`. A formula is compiled for its first size, and then for all sizes.
Beyond the number of graphs that the compiler allows, it stays eager.
"""

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from moebench.model import cpu_attention as attention
from moebench.model.pieces import compiled
from moebench.model.rotary import rotary_tables


def check(sequences: int) -> None:
    qkv, gain = torch.randn(sequences, 6, 3, 2, 32).bfloat16(), torch.rand(32) + 1
    inputs = (qkv, gain, *rotary_tables(6, 32, torch.float32))
    upstream = torch.randn(2, sequences, 2, 6, 32).bfloat16()
    turned = [torch.zeros_like(upstream) for _ in range(2)]
    grads = [torch.ones_like(qkv) for _ in range(2)]
    attention._prepare(*inputs, turned[0])
    compiled(attention._prepared)(*inputs, turned[1])
    of_gain = attention._unprepare(upstream, *inputs, grads[0])
    found = compiled(attention._unprepared)(upstream, *inputs, grads[1])
    near(*turned)
    near(*grads)
    near(of_gain, found)


def near(one: Tensor, other: Tensor) -> None:
    """Equal but for the order of sums in fp32, and for one rounding to bf16."""
    rounding = 0 if one.dtype == torch.float32 else 2.0**-7
    torch.testing.assert_close(other, one, rtol=1e-5 + rounding, atol=1e-5)


if __name__ == "__main__":
    torch.manual_seed(0)
    for number in (5, 2, 3, 8, 5, 16):
        check(number)
    with torch._dynamo.config.patch(recompile_limit=2):
        check(1)
    assert counters["stats"]["unique_graphs"] == 4, "of two formulas, two each"
