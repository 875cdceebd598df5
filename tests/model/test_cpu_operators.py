"""The operators of a layer on a CPU: their values and gradients are those of plain formulas."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from moebench.model import cpu_attention as attention
from moebench.model import cpu_experts
from moebench.model.cpu_attention import BLOCK, cpu_attention
from moebench.model.cpu_experts import LEAST, _multiple
from moebench.model.cpu_products import ONEDNN, linear
from moebench.model.experts import mixture
from moebench.model.rotary import heads, rotary_tables
from moebench.model.transformer import causal_attention
from moebench.train.kernels import _why_not
from tests.model.expert_truth import Case, bounds, truth


def results(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    inputs = [each.detach().requires_grad_() for each in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).double()


@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float64, 16), (torch.float32, 16), (torch.float32, 64), (torch.bfloat16, 16)],
)
@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_equal_a_loop_over_tokens(dtype: torch.dtype, width: int, top_k: int) -> None:
    """One expert gets no token. oneDNN computes bf16 and the wider matrices in fp32, where the rows
    of the others are no multiple of LEAST."""
    torch.manual_seed(0)
    tokens, experts, dim = 21, 4, width // 2
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


@pytest.mark.parametrize(
    ("dtype", "width", "copies", "multiple"),
    [
        (torch.float64, 256, 16384, 1),
        (torch.float32, 32, 16384, 1),
        (torch.float32, 256, 16384, 64 if ONEDNN else 1),
        (torch.bfloat16, 32, 0, LEAST),
        (torch.bfloat16, 32, 16, LEAST),
        (torch.bfloat16, 32, 16384, 64),
    ],
)
def test_rows_are_rounded_up_where_code_is_generated_for_their_number(
    dtype: torch.dtype, width: int, copies: int, multiple: int
) -> None:
    assert _multiple(torch.empty(16, width, width, dtype=dtype), copies) == multiple


@pytest.mark.parametrize("of_weight", [True, False])
def test_a_linear_layer_by_onednn_is_that_by_torch(of_weight: bool) -> None:
    torch.manual_seed(0)
    x, weight = numbers(3, 7, 64, dtype=torch.float32), numbers(96, 64, dtype=torch.float32)
    bias, upstream = numbers(96, dtype=torch.float32), numbers(3, 7, 96, dtype=torch.float32)
    inputs = [x, weight, bias] if of_weight else [x]

    def given(function):
        return lambda x, *rest: function(x, *(rest or (weight.to(x.dtype), bias.to(x.dtype))))

    found = results(given(linear), [each.float() for each in inputs], upstream.float())
    expected = results(given(torch.nn.functional.linear), inputs, upstream)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 2**-18 * other.abs().max()


def test_a_linear_layer_without_rows_has_a_gradient_of_zeros() -> None:
    x, weight = torch.empty(0, 64), torch.ones(96, 64)
    out, of_x, of_weight = results(linear, [x, weight], torch.empty(0, 96))
    assert out.shape == (0, 96)
    assert of_x.shape == (0, 64)
    assert of_weight.shape == (96, 64)
    assert not of_weight.any()


def test_linear_layers_of_stacked_arms_are_those_of_each_to_the_bit() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 7, 64), torch.randn(2, 96, 64)
    upstream = torch.randn(2, 5, 7, 96)
    found = results(vmap(linear), [x, weight], upstream)
    for arm in range(2):
        for one, other in zip(
            found, results(linear, [x[arm], weight[arm]], upstream[arm]), strict=True
        ):
            assert torch.equal(one[arm], other)
    shared = vmap(linear, in_dims=(0, None))(x, weight[0])
    assert torch.equal(shared[1], linear(x[1], weight[0]))


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 16), (torch.float32, 64), (torch.bfloat16, 16)]
)
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_arm_that_is_not_finite_leaves_the_others_of_its_stack(
    broken: int, dtype: torch.dtype, width: int
) -> None:
    """With oneDNN, an arm's last expert is given rows of the next arm; the last, of the first."""
    torch.manual_seed(0)
    arms, tokens, experts, dim = 3, 21, 4, width // 2
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


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 16)])
def test_experts_have_the_same_bits_in_groups_of_any_size(
    dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spare rows of an expert are those of the next, in its group or in the next group."""
    torch.manual_seed(0)
    x, weights, up, down, upstream, selected = (
        torch.randn(50, width).to(dtype),
        torch.rand(50, 2),
        torch.randn(6, width, width).to(dtype),
        torch.randn(6, width // 2, width).to(dtype),
        torch.randn(50, width).to(dtype),
        torch.rand(50, 6).topk(2, 1).indices,
    )

    def computed(*inputs: Tensor) -> Tensor:
        x, weights, up, down = inputs
        return mixture(x, selected, weights, up, down, fused=False)

    found = []
    for group in (1, 40 * width // 2, 2**16):  # of one, some and all experts
        monkeypatch.setattr(cpu_experts, "GROUP", group)
        found.append(results(computed, [x, weights, up, down], upstream))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.fixture(params=[False, True], ids=["eager", "compiled"])
def formulas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention in eager, and as where its caller is compiled, by formulas that are not."""
    asked = set[str]()

    def as_it_is(formula: Callable[..., Any]) -> Callable[..., Any]:
        asked.add(formula.__name__)
        return formula

    if request.param:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(attention, "compiled", as_it_is)
    yield
    assert asked == ({"_prepared", "_unprepared"} if request.param else set())


@pytest.mark.usefixtures("formulas")
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


@pytest.mark.usefixtures("formulas")
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


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_formulas_are_the_eager_pieces() -> None:
    """In a process without type checks, which the compiler cannot see through."""
    if why := _why_not(torch.device("cpu")):
        pytest.skip(f"nothing can be compiled here: {why}")
    script = [sys.executable, "-m", "tests.model.compiled_formulas"]
    alone = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    found = subprocess.run(script, capture_output=True, text=True, check=False, env=alone)
    assert found.returncode == 0, found.stderr
