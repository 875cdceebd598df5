"""What a step costs on the pretended GPU: memory and launches, alone and in a stack."""

import pytest

from tests.pretended_gpu.conftest import MadeRun
from tests.pretended_gpu.costs import costs
from tests.pretended_gpu.gpu import Gpu

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "words", ["", "run.device_bsz=4", "router=relu", "router=mlp", "method=snippet", "model=tiny"]
)
def test_a_step_takes_no_more_memory_than_stacks_are_planned_with(
    made: MadeRun, gpu: Gpu, words: str
) -> None:
    found = costs(made, gpu, words, "train.precision=bf16", "model.d_model=64", "seq_len=64")
    assert found.memory <= found.planned


@pytest.mark.parametrize(("model", "most", "more"), [("tiny", 405, 30), ("small", 512, 30)])
def test_a_step_launches_no_more_than_its_budget(
    made: MadeRun, gpu: Gpu, model: str, most: int, more: int
) -> None:
    words = f"model={model}", "train.precision=bf16", "run.log_every=100", "train.steps=1000"
    alone, two, four = (costs(made, gpu, *words, arms=arms).launches for arms in (1, 2, 4))
    assert alone <= most
    assert (four - two) / 2 <= more
