"""The pretended device of a test."""

import pytest

from tests.pretended_gpu.gpu import Gpu
from tests.pretended_gpu.tensor import OnGpu


@pytest.fixture
def gpu() -> Gpu:
    """What the pretended device has seen in this test."""
    if not hasattr(OnGpu, "gpu"):
        pytest.skip("a real GPU does not tell what it does")
    return OnGpu.gpu
