"""`pytest -p tests.pretended_gpu.plugin -m gpu`: the tests of a GPU, on the pretended one.

It must be loaded before torch, in a process of its own. On a machine with a GPU it does nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretended_gpu import guard

HAS_GPU = Path("/dev/nvidiactl").exists()
REASON = "" if HAS_GPU else guard.why_not()

if not HAS_GPU and not REASON:
    library = guard.load()
    from torch.optim import optimizer  # pyright: ignore
    from torch.utils import _foreach_utils

    library.register_device()

    from tests.pretended_gpu.tensor import OnGpu

    # else the gradients are clipped one by one
    for module in (optimizer, _foreach_utils):
        module._foreach_supported_types.append(OnGpu)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests marked `gpu` find the pretended device, where ties are those of a CPU."""
    if HAS_GPU or REASON or not item.get_closest_marker("gpu"):
        return (yield)
    from tests.pretended_gpu.pretend import pretended

    with pretended(ties=False):
        return (yield)


def pytest_report_header() -> str:
    return "gpu: the real one" if HAS_GPU else f"gpu: pretended{REASON and f', not: {REASON}'}"
