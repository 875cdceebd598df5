"""Grouped products equal a loop over groups, alone, stacked and compiled."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from moebench.errors import ConfigError
from moebench.model.experts import mixture
from moebench.model.grouped import combine, dispatch, grouped_mm

pytestmark = pytest.mark.usefixtures("no_fallback")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ENDS = [[3, 3, 10, 16], [0, 16, 16, 16], [4, 8, 12, 16], [0, 0, 0, 16]]
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}


def operands(dtype: torch.dtype, device: str, *arms: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((*arms, 16, 32), (*arms, 4, 32, 48), (*arms, 16, 48))
    rows, matrices, upstream = (
        torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype)
        for shape in shapes
    )
    return rows.requires_grad_(), matrices.requires_grad_(), upstream


def loop(rows: Tensor, matrices: Tensor, ends: list[int]) -> Tensor:
    begins = [0, *ends[:-1]]
    parts = [rows[a:b] @ matrix for a, b, matrix in zip(begins, ends, matrices, strict=True)]
    return torch.cat(parts)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_it_equals_a_loop_over_groups(dtype: torch.dtype, ends: list[int], device: str):
    rows, matrices, upstream = operands(dtype, device)
    found = grouped_mm(rows, matrices, torch.tensor(ends, dtype=torch.int32, device=device))
    got = torch.autograd.grad((found * upstream).sum(), (rows, matrices))
    wanted = loop(rows, matrices, ends)
    truth = torch.autograd.grad((wanted * upstream).sum(), (rows, matrices))
    for one, other in zip((found, *got), (wanted, *truth), strict=True):
        assert (one - other).abs().max() <= BOUNDS[dtype]
    for group, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if begin == end:
            assert not got[1][group].any(), "an expert without tokens has a gradient of 0"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_stacked_arms_are_more_groups(dtype: torch.dtype, device: str):
    rows, matrices, upstream = operands(dtype, device, len(ENDS))
    ends = torch.tensor(ENDS, dtype=torch.int32, device=device)
    found = torch.func.vmap(grouped_mm)(rows, matrices, ends)
    got = torch.autograd.grad((found * upstream).sum(), (rows, matrices))
    for arm in range(len(ENDS)):
        own = [factor[arm].detach().requires_grad_() for factor in (rows, matrices)]
        alone = grouped_mm(own[0], own[1], ends[arm])
        truth = torch.autograd.grad((alone * upstream[arm]).sum(), own)
        assert torch.equal(found[arm], alone)
        assert all(torch.equal(a[arm], b) for a, b in zip(got, truth, strict=True))


def test_operands_that_arms_share_are_passed_once():
    rows, matrices, _ = operands(torch.float32, "cpu", 2)
    ends = torch.tensor(ENDS[0], dtype=torch.int32)
    found = torch.func.vmap(grouped_mm, in_dims=(None, 0, None))(rows[0], matrices, ends)
    assert torch.equal(found[1], grouped_mm(rows[0], matrices[1], ends))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_compiles_into_one_graph(dtype: torch.dtype):
    rows, matrices, upstream = operands(dtype, "cpu")
    ends = torch.tensor(ENDS[0], dtype=torch.int32)
    operator = torch.ops.moebench.grouped_mm  # free of the tests' shape checks
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    results = []
    for function in (operator, compiled):
        found = function(rows, matrices, ends)
        results.append([found, *torch.autograd.grad((found * upstream).sum(), (rows, matrices))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_operators_pass_torchs_checks():
    rows, matrices, upstream = operands(torch.float32, "cpu")
    ends = torch.tensor(ENDS[0], dtype=torch.int32)
    torch.library.opcheck(torch.ops.moebench.grouped_mm, (rows, matrices, ends))
    torch.library.opcheck(torch.ops.moebench.grouped_outer, (rows.detach(), upstream, ends))


def test_an_expanded_gradient_is_accepted():
    rows, matrices, _ = operands(torch.float32, "cpu")
    grouped_mm(rows, matrices, torch.tensor(ENDS[0], dtype=torch.int32)).sum().backward()
    assert rows.grad is not None


@pytest.mark.gpu
def test_a_width_that_a_gpu_does_not_support_is_named():
    rows = torch.randn(4, 30, device="cuda", dtype=torch.bfloat16)
    matrices = torch.randn(2, 30, 16, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([2, 4], dtype=torch.int32, device="cuda")
    with pytest.raises(ConfigError, match=r"width 30 .* multiples of 8 on a GPU"):
        grouped_mm(rows, matrices, ends)


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_rows_are_copied_and_summed_in_their_order(top_k: int) -> None:
    order = torch.randperm(5 * top_k, generator=torch.Generator().manual_seed(0))
    row, place = order // top_k, order.argsort()
    x, scale = drawn(5, 3), drawn(5 * top_k, 1)
    assert torch.equal(dispatch(x, row, place), x.repeat_interleave(top_k, 0)[order])

    def there_and_back(x: Tensor, scale: Tensor) -> Tensor:
        return combine(dispatch(x, row, place) * scale, row, place, 5)

    of_row = scale[place].unflatten(0, (5, top_k)).sum(1)
    assert torch.allclose(there_and_back(x, scale), x * of_row)
    assert torch.autograd.gradcheck(there_and_back, (x, scale))


def test_stacked_experts_are_those_of_each_arm() -> None:
    index = torch.randint(0, 4, (3, 5, 2), generator=torch.Generator().manual_seed(0))
    inputs = [drawn(3, 5, 6), drawn(3, 5, 2), drawn(3, 4, 6, 8), drawn(3, 4, 4, 6)]

    def with_gradients(mixed: Callable[..., Tensor], arm: slice | int) -> list[Tensor]:
        x, weights, up, down = own = [each[arm].detach().requires_grad_() for each in inputs]
        found = mixed(x, index[arm], weights, up, down)
        return [found, *torch.autograd.grad(found.square().sum(), own)]

    mixed = partial(mixture, fused=False)
    stacked = with_gradients(torch.func.vmap(mixed), slice(None))
    for arm in range(3):
        alone = with_gradients(mixed, arm)
        assert all(torch.equal(one[arm], other) for one, other in zip(stacked, alone, strict=True))
