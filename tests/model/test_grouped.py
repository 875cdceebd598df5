"""Grouped products and the stacking of models: exact, without a fallback, traced whole."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from moebench.model.grouped import combine, dispatch, grouped_mm

ENDS = torch.tensor([[5, 5, 12, 12], [0, 3, 7, 12]], dtype=torch.int32)
SHAPES = [(2, 12, 16), (2, 4, 16, 8)]  # rows, and a matrix a group, of two arms
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def no_fallback() -> Iterator[None]:
    """Operations without a vmap rule raise, where they would loop over the arms."""
    torch._C._functorch._set_vmap_fallback_enabled(False)  # pyright: ignore
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)  # pyright: ignore


def drawn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mapped_products_equal_those_of_each_arm(dtype: torch.dtype, device: str) -> None:
    rows, matrices = (drawn(*shape, dtype=dtype, device=device) for shape in SHAPES)
    ends = ENDS.to(device)
    found = vmap(grouped_mm)(rows, matrices, ends)
    weight = drawn(*found.shape, dtype=dtype, device=device).detach()
    got = torch.autograd.grad(found, (rows, matrices), weight)
    for arm in range(2):
        own = [each[arm].detach().requires_grad_() for each in (rows, matrices)]
        alone = grouped_mm(own[0], own[1], ends[arm])
        assert torch.equal(found[arm], alone)
        want = torch.autograd.grad(alone, own, weight[arm])
        assert all(torch.equal(one[arm], other) for one, other in zip(got, want, strict=True))
    sizes = ends.diff(prepend=ends.new_zeros(2, 1), dim=1)
    assert (got[1][sizes == 0] == 0).all(), "an expert without tokens gets exactly no gradient"


def test_what_arms_share_is_expanded() -> None:
    rows, matrices = (drawn(*shape[1:]) for shape in SHAPES)
    found = vmap(grouped_mm, in_dims=(None, None, 0))(rows, matrices, ENDS)
    found.sum().backward()  # a gradient with strides of 0
    alone = torch.stack([grouped_mm(rows, matrices, each) for each in ENDS])
    assert torch.equal(found, alone)
    assert rows.grad is not None
    assert torch.allclose(rows.grad, torch.autograd.grad(alone.sum(), rows)[0])


def test_the_operators_keep_their_own_promises() -> None:
    """Fake tensors, autograd registration and schema, as torch itself checks them."""
    rows, matrices = (drawn(*shape[1:]) for shape in SHAPES)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for name, inputs in {
        "grouped_mm": (rows, matrices, ENDS[0]),
        "grouped_outer": (rows.detach(), drawn(12, 8).detach(), ENDS[0]),
    }.items():
        operator: Any = getattr(torch.ops.moebench, name).default
        assert set(torch.library.opcheck(operator, inputs, test_utils=checks).values()) == {
            "SUCCESS"
        }


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_rows_are_copied_and_summed_in_their_order(top_k: int) -> None:
    index = torch.randint(0, 4, (2, 5 * top_k), generator=torch.Generator().manual_seed(0))
    order = index.argsort(dim=1, stable=True)
    place = order.argsort(dim=1)
    x = drawn(2, 5, 3, dtype=torch.float64)
    copies = vmap(dispatch)(x, order, place)
    for arm in range(2):
        assert torch.equal(copies[arm], x[arm].repeat_interleave(top_k, 0)[order[arm]])
    scale = drawn(2, 5 * top_k, 1, dtype=torch.float64)

    def there_and_back(x: Tensor, scale: Tensor, order: Tensor, place: Tensor) -> Tensor:
        return combine(dispatch(x, order, place) * scale, order, place, 5)

    found = vmap(there_and_back)(x, scale, order, place)
    of_row = scale.gather(1, place[..., None]).unflatten(1, (5, top_k)).sum(2)
    assert torch.allclose(found, x * of_row)
    assert torch.autograd.gradcheck(
        lambda x, scale: there_and_back(x, scale, order[0], place[0]),
        (x[0].detach().requires_grad_(), scale[0].detach().requires_grad_()),
    )
