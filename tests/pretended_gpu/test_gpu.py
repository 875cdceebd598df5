"""The pretended GPU notices what a GPU would do."""

import gc

import pytest
import torch
import torch.nn.functional as F

from tests.pretended_gpu.gpu import Gpu, WaitedError

pytestmark = pytest.mark.gpu


def test_reads_and_shapes_of_data_wait(gpu: Gpu) -> None:
    values = torch.arange(4.0, device="cuda")
    for read in (
        lambda: values[0].item(),
        lambda: bool(values[0] > 1),
        lambda: values.tolist(),
        lambda: values.cpu(),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: values.repeat_interleave(values.long()),
        lambda: torch.empty(4).copy_(values),
        lambda: torch.zeros(4).to("cuda"),
        lambda: torch.zeros(4).to("cuda", non_blocking=True),
    ):
        gpu.forget()
        read()
        assert sum(gpu.waits.values()) == 1
    gpu.waits_are_errors = True
    with pytest.raises(WaitedError):
        values.sum().item()


def test_pinned_memory_is_copied_without_waiting_and_arrives_later(gpu: Gpu) -> None:
    values = torch.arange(4.0).pin_memory().to("cuda", non_blocking=True)
    host = torch.empty(4, pin_memory=True)
    host.copy_(values, non_blocking=True)
    assert host.isnan().all()
    torch.cuda.Event().synchronize()
    assert host.tolist() == [0, 1, 2, 3]
    assert not gpu.waits


def test_devices_do_not_mix(gpu: Gpu) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.add(torch.ones(2, device="cuda"), torch.ones(2))


def test_memory_that_nobody_wrote_is_rubbish(gpu: Gpu) -> None:
    assert torch.empty(3, device="cuda").isnan().all()


def test_launches_are_counted_but_not_those_of_views(gpu: Gpu) -> None:
    (torch.ones(2, 3, device="cuda").mT.reshape(6) + 1).sum()
    assert gpu.launches == {"ones": 1, "clone": 1, "add": 1, "sum": 1}


def test_memory_is_held_until_its_last_tensor_is_gone(gpu: Gpu) -> None:
    before = gpu.memory.live
    whole = torch.ones(1000, device="cuda")
    part = whole[:2]
    del whole
    assert gpu.memory.live - before == 4096  # in blocks of 512 bytes
    del part
    gc.collect()
    assert gpu.memory.live == before
    assert torch.cuda.max_memory_allocated() == before + 4096


@pytest.mark.parametrize("index", [[0, 1, 1], [0, 1, 2]])
def test_atomic_sums_have_no_order(gpu: Gpu, index: list[int]) -> None:
    torch.zeros(3, device="cuda").index_add(
        0, torch.tensor(index, device="cuda"), torch.ones(3).cuda()
    )
    assert bool(gpu.unordered) == (index == [0, 1, 1])


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_product_waits_where_it_has_no_kernel(
    gpu: Gpu, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    gpu.capability = capability
    left, right = (torch.ones(*shape, device="cuda", dtype=dtype) for shape in ((8, 8), (2, 8, 8)))
    ends = torch.tensor([8, 8], dtype=torch.int32).pin_memory().to("cuda", non_blocking=True)
    F.grouped_mm(left, right, offs=ends)
    assert bool(gpu.waits) == (dtype == torch.float32 or capability == (8, 0))
    with pytest.raises(RuntimeError, match="16 bytes"):
        F.grouped_mm(left[:, :7].contiguous(), right[:, :7], offs=ends)
    empty = F.grouped_mm(left.T, left, offs=ends)[1]
    assert bool(empty.isnan().all()) == (dtype == torch.bfloat16 and capability == (10, 0))
