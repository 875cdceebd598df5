"""The operators of a layer on a CPU: their values and gradients are those of plain formulas."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from moebench.model.cpu_attention import BLOCK, cpu_attention
from moebench.model.cpu_experts import LEAST, _multiple
from moebench.model.experts import mixture
from moebench.model.rotary import heads, rotary_tables
from moebench.model.transformer import causal_attention
from tests.model.expert_truth import Case, bounds, truth


def results(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    inputs = [each.detach().requires_grad_() for each in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_equal_a_loop_over_tokens(dtype: torch.dtype, top_k: int) -> None:
    """One expert gets no token, and in bf16 the rows of the others are no multiple of LEAST."""
    torch.manual_seed(0)
    tokens, experts, width, dim = 21, 4, 16, 8
    case = Case(
        x=numbers(tokens, width, dtype=dtype),
        weights=torch.rand(tokens, top_k).to(dtype).double(),
        up=numbers(experts, width, 2 * dim, dtype=dtype),
        down=numbers(experts, dim, width, dtype=dtype),
        upstream=numbers(tokens, width, dtype=dtype),
        selected=torch.rand(tokens, experts - 1).topk(top_k, 1).indices,
    )

    def computed(x: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return mixture(x, case.selected, weights, up, down, fused=False)

    inputs = [part.to(dtype) for part in case[:4]]
    found = results(computed, inputs, case.upstream.to(dtype))
    # hidden, its gradient and that of `pre` are stored after each of several operations
    unit = {torch.float64: 2.0**-51, torch.float32: 2.0**-22, torch.bfloat16: 2.0**-6}[dtype]
    for name, one, true, bound in zip(
        Case._fields, found, truth(case), bounds(case, unit), strict=False
    ):
        assert ((one.double() - true).abs() <= bound + 1e-300).all(), name
    assert not found[3][experts - 1].any(), "an expert without tokens has no gradient"


def test_rows_are_rounded_up_in_bf16_alone() -> None:
    assert [_multiple(torch.float32, 16384, 16), _multiple(torch.float64, 64, 4)] == [1, 1]
    assert [_multiple(torch.bfloat16, copies, 16) for copies in (0, 16, 16384)] == [
        LEAST,
        LEAST,
        64,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_arm_that_is_not_finite_leaves_the_others_of_its_stack(
    broken: int, dtype: torch.dtype
) -> None:
    """In bf16, an arm's last expert is given rows of the next arm; the last arm, of the first."""
    torch.manual_seed(0)
    arms, tokens, experts, width, dim = 3, 21, 4, 16, 8
    selected = torch.rand(arms, tokens, experts).topk(2, -1).indices
    shapes = (tokens, width), (tokens, 2), (experts, width, 2 * dim), (experts, dim, width)
    inputs = [torch.randn(arms, *shape).to(dtype) for shape in shapes]
    upstream = torch.randn(arms, tokens, width).to(dtype)

    def stacked(*inputs: Tensor) -> Tensor:
        return vmap(lambda index, x, *rest: mixture(x, index, *rest, fused=False))(
            selected, *inputs
        )

    whole = results(stacked, inputs, upstream)
    inputs[0][broken], upstream[broken] = torch.nan, torch.nan
    for name, one, other in zip(
        ("out", "x", "weights", "up", "down"),
        whole,
        results(stacked, inputs, upstream),
        strict=True,
    ):
        for arm in {0, 1, 2} - {broken}:
            assert torch.equal(one[arm], other[arm]), f"{name} of arm {arm}"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [BLOCK - 5, 2 * BLOCK + 3])
def test_attention_equals_written_out_products(tokens: int, masked: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, tokens, 3, 2, 8, dtype=torch.float64)
    gain = torch.rand(8, dtype=torch.float64) + 1
    tables = rotary_tables(tokens, 8, torch.float64)
    mask = torch.rand(3, tokens, tokens) < 0.5
    mask = (mask | torch.eye(tokens, dtype=torch.bool)).tril() if masked else None
    upstream = torch.randn(3, tokens, 2, 8, dtype=torch.float64)

    def plain(qkv: Tensor, gain: Tensor) -> Tensor:
        return causal_attention(*heads(qkv, gain, tables), mask).transpose(1, 2)

    found = results(
        lambda qkv, gain: cpu_attention(qkv, gain, *tables, mask), [qkv, gain], upstream
    )
    expected = results(plain, [qkv, gain], upstream)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_stacked_arms_is_that_of_each_to_the_bit(masked: bool) -> None:
    torch.manual_seed(0)
    qkv, gain = torch.randn(2, 3, 10, 3, 2, 8), torch.rand(2, 8) + 1
    mask = torch.ones(2, 3, 10, 10, dtype=torch.bool).tril() if masked else None
    tables = rotary_tables(10, 8, torch.float32)
    upstream = torch.randn(2, 3, 10, 2, 8)
    dims = (0, 0, None, None, 0 if masked else None)

    def stacked(qkv: Tensor, gain: Tensor) -> Tensor:
        return vmap(cpu_attention, in_dims=dims)(qkv, gain, *tables, mask)

    found = results(stacked, [qkv, gain], upstream)
    for arm in range(2):
        own = None if mask is None else mask[arm]
        alone = results(
            lambda qkv, gain, own=own: cpu_attention(qkv, gain, *tables, own),
            [qkv[arm], gain[arm]],
            upstream[arm],
        )
        for one, other in zip(found, alone, strict=True):
            assert torch.equal(one[arm], other)
