"""What a step costs on the pretended GPU: memory and launches, alone and in a stack."""

import pytest

from moebench.config.cost import memory_bytes
from moebench.train.stack import GradientRequest, Stack
from tests.pretended_gpu.conftest import MadeRun, step
from tests.pretended_gpu.gpu import Gpu

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "words", ["", "run.device_bsz=4", "router=relu", "router=mlp", "method=snippet", "model=tiny"]
)
def test_a_step_takes_no_more_memory_than_stacks_are_planned_with(
    made: MadeRun, gpu: Gpu, words: str
) -> None:
    before = gpu.memory.live
    run = made("cuda", words, "train.precision=bf16", "model.d_model=64", "seq_len=64")
    step(run)
    assert gpu.memory.peak - before <= memory_bytes(run.config, run.corpus.vocab_size)


def launches(made: MadeRun, gpu: Gpu, model: str, arms: int) -> int:
    """Of the second step of a stack, which is not logged, in bf16."""
    words = f"model={model}", "train.precision=bf16", "run.log_every=100", "train.steps=1000"
    runs = [made("cuda", *words, f"seed={seed}") for seed in range(arms)]
    stack = Stack([run.state.model for run in runs])
    for _ in range(2):  # the first step makes state
        requests = [GradientRequest(run, run.next_step()) for run in runs]
        gpu.forget()
        outcomes = stack.update(requests, stack.gradients(requests))
        for request, outcome in zip(requests, outcomes, strict=True):
            request.run.finish(request.step, outcome)
    return sum(gpu.launches.values())


@pytest.mark.parametrize(("model", "most", "more"), [("tiny", 551, 34), ("small", 721, 34)])
def test_a_step_launches_no_more_than_its_budget(
    made: MadeRun, gpu: Gpu, model: str, most: int, more: int
) -> None:
    alone, two, four = (launches(made, gpu, model, arms) for arms in (1, 2, 4))
    assert alone <= most
    assert (four - two) / 2 <= more
