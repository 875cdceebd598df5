"""The sorting network against `torch.topk`: the same experts in the same order."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moebench.balance import top_experts as module
from moebench.balance.top_experts import top_experts

ONE = torch.tensor(1.0)
NEXT = [float(ONE.nextafter(2 * ONE)), float(ONE.nextafter(0 * ONE))]
EXTREMES = [torch.inf, -torch.inf, torch.nan, 3e38, torch.finfo(torch.float32).min, 1e-45, 1e-38]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.3, *NEXT, *EXTREMES]


@pytest.fixture(autouse=True)
def a_network_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(module, "FEWEST", 0)
    monkeypatch.setattr(module, "CACHED", 1000)


def drawn(kind: str, experts: int) -> Tensor:
    normal = torch.randn(3, 70, experts, generator=torch.manual_seed(experts))
    kinds: dict[str, Callable[[], Tensor]] = {
        "probabilities": lambda: normal.softmax(-1),
        "logits": lambda: normal,
        "bf16": lambda: normal.bfloat16().float(),
        "masked": lambda: normal.masked_fill(normal < -0.5, -torch.inf),
        "close": lambda: 1 + 1e-6 * normal,
        "across": lambda: normal.transpose(0, 1),
    }
    return kinds[kind]()


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (6, 2), (8, 8), (16, 1), (60, 4), (64, 8)])
@pytest.mark.parametrize("kind", ["probabilities", "logits", "bf16", "masked", "close", "across"])
def test_is_topk(kind: str, experts: int, top_k: int) -> None:
    scores = drawn(kind, experts)
    assert torch.equal(top_experts(scores, top_k), scores.topk(top_k, dim=-1).indices)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_of_special_values_too(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 12))
    top_k = data.draw(st.integers(1, experts))
    row = st.lists(st.sampled_from(SPECIAL), min_size=experts, max_size=experts)
    scores = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    assert torch.equal(top_experts(scores, top_k), scores.topk(top_k, dim=-1).indices)


def test_only_rows_in_doubt_are_left_to_topk(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(100, 16, generator=torch.manual_seed(0)).softmax(-1)
    scores[7, 3] = scores[7, 12] = 1.0
    scores[:, :3] = -torch.inf  # as of a mask
    expected = scores.topk(4, dim=-1).indices
    sorted_rows, topk = [], Tensor.topk

    def counting(rows: Tensor, k: int, dim: int) -> object:
        sorted_rows.append(len(rows))
        return topk(rows, k, dim)

    monkeypatch.setattr(Tensor, "topk", counting)
    assert torch.equal(top_experts(scores, 4), expected)
    assert sorted_rows == [1]


def test_topk_itself_in_a_transform_where_no_value_can_be_read() -> None:
    scores = torch.randn(2, 40, 8, generator=torch.manual_seed(0))
    found = torch.func.vmap(lambda each: top_experts(each, 2))(scores)
    assert torch.equal(found, scores.topk(2, dim=-1).indices)
