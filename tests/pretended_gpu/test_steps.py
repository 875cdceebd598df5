"""Steps on the pretended GPU: they agree with those of the CPU, and the host never waits."""

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

pytestmark = pytest.mark.gpu
COMPOSER = Composer()
WORDS = [
    *("scope=micro", "scope=shuffled", "scope=domain", "scope=sequence", "scope=global"),
    *("run.device_bsz=4", "balance.estimator=buffer balance.pass_bsz=4", "balance.window_steps=2"),
    *("balance.estimator=ema", "router=topk_softmax method=bias", "router=grouped method=bias"),
    *("router=sparsemax router.form=mlp", "router=noisy router.jitter=0.1", "router=cosine"),
    *("router=random", "router=capacity", "router=growing", "router=pruning router.prune_every=1"),
    *("router=relu method=remoe", "router=hash scope=none", "router=sequence_hash scope=none"),
    *("method=quantile", "method=expert_choice", "method=load_error", "method=simbal"),
    *("method=orthogonality", "method=specialize", "method=snippet", "method=sinkhorn"),
    *("model.moe=false", "model.num_shared_experts=1", "data.mask_documents=true"),
]
MadeRun = Callable[..., TrainingRun]


@pytest.fixture
def made(text_folder: Path) -> MadeRun:
    def run(device: str, *words: str) -> TrainingRun:
        config = COMPOSER.compose(
            [
                *("model=smoke", "train.steps=4", "global_bsz=8", "seq_len=32"),
                *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
                *("train.eval_every=0", "run.log_every=1", f"run.device={device}"),
                *(part for word in words for part in word.split()),
            ]
        )
        corpus = prepare(config.data)
        state = make_state(config, corpus.vocab_size, torch.device(device))
        return TrainingRun(config, corpus, state, torch.device(device))

    return run


def step(run: TrainingRun) -> None:
    """One step, up to the launch of its last operation, and the row of the step before."""
    outcome = accumulate_gradients(
        run.state.model, run.objective, made_step := run.next_step(), run.state.balance
    )
    run.finish(made_step, outcome)


@pytest.mark.parametrize("words", WORDS)
def test_two_steps_agree_with_those_of_the_cpu(made: MadeRun, gpu: Gpu, words: str) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        run = made(device, words, "train.precision=fp32", "run.threads=1")
        step(run)
        step(run)
        weights.append({name: each.cpu() for name, each in run.state.model.state_dict().items()})
    on_cpu, on_gpu = weights
    for name, value in on_cpu.items():
        assert (on_gpu[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("words", WORDS)
def test_no_logged_step_waits_or_sums_in_no_order(made: MadeRun, gpu: Gpu, words: str) -> None:
    run = made("cuda", words, "train.precision=bf16", "model.d_model=64")
    step(run)  # the first one makes state
    gpu.forget()
    step(run)
    assert not gpu.waits
    assert not gpu.unordered
