"""The pretended device of a test, and small runs on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.train.build import make_state
from moebench.train.gradients import accumulate_gradients
from moebench.train.loop import TrainingRun
from tests.pretended_gpu.gpu import Gpu
from tests.pretended_gpu.tensor import OnGpu

COMPOSER = Composer()
MadeRun = Callable[..., TrainingRun]


@pytest.fixture
def gpu() -> Gpu:
    """What the pretended device has seen in this test."""
    if not hasattr(OnGpu, "gpu"):
        pytest.skip("a real GPU does not tell what it does")
    return OnGpu.gpu


@pytest.fixture
def made(text_folder: Path) -> MadeRun:
    """Makes a run on a device, of small size where the words do not say otherwise."""

    def run(device: str, *words: str) -> TrainingRun:
        usual = (
            *("model=smoke", "train.steps=4", "global_bsz=8", "seq_len=32", "run.log_every=1"),
            *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
            *("train.eval_every=0", f"run.device={device}", "run.threads=1"),
        )
        typed = [part for word in words for part in word.split()]
        keys = {part.split("=")[0] for part in typed}
        config = COMPOSER.compose([*(w for w in usual if w.split("=")[0] not in keys), *typed])
        corpus = prepare(config.data)
        state = make_state(config, corpus.vocab_size, torch.device(device))
        return TrainingRun(config, corpus, state, torch.device(device))

    return run


def step(run: TrainingRun) -> None:
    """One step, up to the launch of its last operation."""
    of_run = run.next_step()
    outcome = accumulate_gradients(run.state.model, run.objective, of_run, run.state.balance)
    run.finish(of_run, outcome)
