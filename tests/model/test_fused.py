"""The Triton kernels of the experts equal a loop over slots, alone, stacked and compiled.

On a CPU they run in Triton's interpreter, which truncates to bf16 where a GPU rounds.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moebench.model import fused
from moebench.model.experts import Experts, mixture
from moebench.model.fused import fused_experts
from tests.model.expert_truth import Case, Results, bounds, truth

if find_spec("triton") is None:
    pytest.skip("needs triton (pip install 'triton>=3.6')", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter of triton 3.6 makes scalars in a way that NumPy 1.25 deprecated and 2.4 refuses.
DATED = version("triton").startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0"),
    pytest.mark.usefixtures("no_fallback"),
]
DEVICES = [
    pytest.param(
        "cpu",
        marks=[
            pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
            pytest.mark.skipif(DATED, reason="the interpreter of triton 3.6 needs NumPy < 2.4"),
        ],
    ),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(INTERPRETED, reason="the interpreter computes on the CPU"),
        ],
    ),
]
LARGEST = {torch.float32: 1e-6, torch.bfloat16: 0.05}  # error, as a share of the largest value
UNITS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8}


def drawn(index: Tensor, experts: int, d_model: int, expert_dim: int, dtype: torch.dtype) -> Case:
    draw = torch.Generator().manual_seed(0)
    tokens, top_k = index.shape

    def normal(*shape: int, deviation: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64) * deviation
        return numbers.to(dtype).double()

    return Case(
        x=normal(tokens, d_model),
        weights=torch.rand(tokens, top_k, generator=draw).double(),
        up=normal(experts, d_model, 2 * expert_dim, deviation=d_model**-0.5),
        down=normal(experts, expert_dim, d_model, deviation=expert_dim**-0.5),
        upstream=normal(tokens, d_model),
        selected=index,
    )


def routed(tokens: int, top_k: int, experts: int) -> Tensor:
    draw = torch.Generator().manual_seed(tokens)
    return torch.rand(tokens, experts, generator=draw).argsort(1)[:, :top_k]


def computed(case: Case, dtype: torch.dtype, device: str) -> Results:
    """The results of the kernels; the weights of slots stay in fp32, as a router gives them."""
    experts = Experts(case.up.shape[0], case.up.shape[1], case.down.shape[1]).to(device, dtype)
    experts.fused = True
    with torch.no_grad():
        experts.up.copy_(case.up)
        experts.down.copy_(case.down)
    x = case.x.to(device, dtype).requires_grad_()
    weights = case.weights.to(device, torch.float32).requires_grad_()
    index = case.selected.to(device)
    out = experts(x, index, weights)
    inputs = (x, weights, experts.up, experts.down)
    return Results(out.detach(), *torch.autograd.grad(out, inputs, case.upstream.to(device, dtype)))


SHAPES = {  # routing, experts, width, expert width
    "even": (routed(30, 2, 4), 4, 32, 24),
    "experts without tokens": (routed(20, 3, 3) + 1, 5, 16, 16),
    "one expert for nearly all": (torch.tensor([[2]] * 299 + [[0]]), 3, 16, 16),
    "more experts than tokens": (torch.tensor([[6, 1]]), 8, 16, 8),
    "widths of several tiles": (routed(5, 2, 2), 2, 72, 80),
    "widths of no power of two": (routed(9, 1, 2), 2, 20, 12),
    "all to one": (torch.full((140, 1), 1), 2, 8, 4),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", UNITS, ids=str)
def test_they_equal_a_loop_over_slots(dtype: torch.dtype, shape: str, device: str) -> None:
    case = drawn(*SHAPES[shape], dtype)
    found, wanted, most = computed(case, dtype, device), truth(case), bounds(case, UNITS[dtype])
    for name, one, other, bound in zip(Results._fields, found, wanted, most, strict=True):
        error = (one.cpu().double() - other).abs()
        assert one.shape == other.shape, name
        assert (error <= bound).all(), f"{name}: {(error / bound).max():.2f} times its bound"
        share = float(error.max() / other.abs().max())
        assert share < LARGEST[dtype], f"{name}: off by {share:.1e} of the largest"


def operands(dtype: torch.dtype, device: str, arms: int) -> tuple[list[Tensor], Tensor]:
    """What `fused_experts` takes, and the gradient of its output, for several arms."""
    stacked, upstreams = [], []
    for arm in range(arms):
        index = routed(6 + arm, 2, 3)[:6]
        case = drawn(index, 3, 16, 8, dtype)
        order = index.flatten().argsort(stable=True)
        ends = torch.bincount(index.flatten(), minlength=3).cumsum(0).to(torch.int32)
        floats = [part * (1 + arm) for part in (case.x, case.up, case.down)]
        moved = [part.to(device, dtype) for part in floats]
        weights = case.weights.flatten().to(device, torch.float32)
        stacked.append([*moved, weights, order.to(device), ends.to(device)])
        upstreams.append(case.upstream.to(device, dtype))
    return [torch.stack(parts) for parts in zip(*stacked, strict=True)], torch.stack(upstreams)


def with_gradients(function: Any, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in inputs[:4]]
    out = function(*leaves, *inputs[4:])
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def mixed(x: Tensor, weights: Tensor, up: Tensor, down: Tensor, index: Tensor) -> Tensor:
    return mixture(x, index, weights, up, down, fused=True)


@pytest.mark.parametrize("device", DEVICES)
def test_stacked_arms_have_the_bits_of_each_alone(device: str) -> None:
    cases = [drawn(routed(6 + arm, 2, 3)[:6], 3, 16, 8, torch.float32) for arm in range(2)]
    *floats, upstream, index = map(torch.stack, zip(*cases, strict=True))
    inputs = [*(each.to(device, torch.float32) for each in floats), index.to(device)]
    upstream = upstream.to(device, torch.float32)
    stacked = with_gradients(torch.func.vmap(mixed), inputs, upstream)
    for arm in range(2):
        alone = with_gradients(mixed, [each[arm] for each in inputs], upstream[arm])
        assert all(torch.equal(one[arm], other) for one, other in zip(stacked, alone, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_operands_that_arms_share_are_passed_once(device: str) -> None:
    case = drawn(routed(6, 2, 3), 3, 16, 8, torch.float32)
    x, weights, up, down = (each.to(device, torch.float32) for each in case[:4])
    index, both = case.selected.to(device), torch.stack([up, 2 * up])
    found = torch.func.vmap(mixed, in_dims=(None, None, 0, None, None))(
        x, weights, both, down, index
    )
    assert torch.equal(found[1], mixed(x, weights, 2 * up, down, index))


@pytest.mark.parametrize("device", DEVICES)
def test_the_copies_of_a_token_are_summed_in_their_order(device: str) -> None:
    case = drawn(routed(7, 3, 4), 4, 16, 8, torch.bfloat16)
    order = case.selected.flatten().argsort(stable=True).to(device)
    ends = torch.bincount(case.selected.flatten(), minlength=4).cumsum(0).to(device, torch.int32)
    rows = torch.randn(21, 8, generator=torch.Generator().manual_seed(0)).to(device)
    product, matrices = torch.ops.moebench.experts_product, case.down.to(device, torch.float32)
    copies, tokens = rows, rows[:7]
    places = order, ends, fused.tile_map(ends, 21, torch.float32)
    first, second, third = product(rows, matrices, copies, *places).view(7, 3, 16).unbind(1)
    found = product(rows, matrices, tokens, *places)
    assert torch.equal(found, first + second + third)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_kept_without_gradients(device: str) -> None:
    inputs, _ = operands(torch.float32, device, 1)
    inputs = [each[0] for each in inputs]
    out, pre, _ = torch.ops.moebench.experts(*inputs, True)
    assert pre.shape == (12, 16)
    with torch.no_grad():
        assert torch.equal(fused_experts(*inputs), out)
    assert torch.ops.moebench.experts(*inputs, False)[1].numel() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("counts", [[0, 64, 65, 0, 1, 0], [0, 0], [330], [1] * 9])
def test_tiles_cover_each_row_once_and_cross_no_group(
    counts: list[int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "SPAN", 4)  # the loops over earlier groups and own tiles repeat
    ends = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)
    copies, rows = sum(counts), fused.BLOCKS[torch.float32].rows
    groups, begins = fused.tile_map(ends, copies, torch.float32).tolist()
    wanted, begin = [], 0
    for group, count in enumerate(counts):
        wanted += [(group, begin + first) for first in range(0, count, rows)]
        begin += count
    assert list(zip(groups, begins, strict=True))[: len(wanted)] == wanted
    assert set(groups[len(wanted) :]) <= {-1}
    assert len(groups) <= len(wanted) + len(counts)


def recorded(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str) -> list[Any]:
    """(kernel, programs, warps, arguments, constants) of each launch; none is made."""
    launches: list[Any] = []

    def launch(kernel: str, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
        launches.append((kernel, programs, warps, arguments, constants))

    monkeypatch.setattr(fused, "launch", launch)
    inputs, upstream = operands(dtype, device, 1)
    x, up, down, scale, order, ends = inputs = [each[0].to(device) for each in inputs]
    _, pre, tiles = fused._experts(*inputs, keep=True)
    pre_grad, hidden, _ = fused._hidden_grad(upstream[0], down, pre, scale, order, ends, tiles)
    fused._product(pre_grad, up.mT, x, order, ends, tiles)
    fused._outer(x, pre_grad, order, ends, True)
    fused._outer(hidden, upstream[0], order, ends, False)
    return launches


@pytest.mark.parametrize("dtype", UNITS, ids=str)
def test_the_host_reads_no_data(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have no data that could be read."""
    forward = ["map_tiles", "gate_up", "scattered", "summed"]
    backward = ["hidden_grad", "scattered", "summed", "outer", "outer"]
    assert [kernel for kernel, *_ in recorded(monkeypatch, dtype, "meta")] == forward + backward


@pytest.mark.parametrize(("allowed", "wanted"), [("high", "tf32"), ("highest", "ieee")])
def test_tf32_is_used_where_torchs_own_products_may(
    allowed: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        launches = recorded(monkeypatch, torch.float32, "meta")
    finally:
        torch.set_float32_matmul_precision(before)
    found = [each[-1]["PRECISION"] for each in launches if "PRECISION" in each[-1]]
    assert found == [wanted] * 6


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_they_compile_into_one_graph(device: str) -> None:
    inputs, upstream = operands(torch.float32, device, 1)
    inputs, upstream = [each[0] for each in inputs], upstream[0]

    def function(*inputs: Tensor) -> Tensor:  # free of the tests' shape checks
        return torch.ops.moebench.experts(*inputs, True)[0] * 2

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    eager = with_gradients(function, inputs, upstream)
    found = with_gradients(compiled, inputs, upstream)
    assert all(torch.equal(one, other) for one, other in zip(eager, found, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_pass_torchs_checks(device: str) -> None:
    inputs, upstream = operands(torch.float32, device, 1)
    x, up, down, scale, order, ends = inputs = [each[0] for each in inputs]
    upstream, operators = upstream[0], torch.ops.moebench
    _, pre, tiles = operators.experts(*inputs, True)
    leaves = [each.clone().requires_grad_() for each in inputs[:4]]
    torch.library.opcheck(operators.experts, (*leaves, order, ends, True))
    for operator, given in (
        (operators.experts_hidden_grad, (upstream, down, pre, scale, order, ends, tiles)),
        (operators.experts_product, (pre, up.mT, x, order, ends, tiles)),
        (operators.experts_outer, (x, pre, order, ends, True)),
    ):
        torch.library.opcheck(operator, given)
