"""A GPU is never waited for within a step; what is not finite is refused all the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.errors import TrainingError
from moebench.train.loop import Arm, make_state
from moebench.train.step import accumulate_gradients

Made = Callable[..., Arm]


@pytest.fixture
def arm(text_folder: Path) -> Made:
    def made(device: str, *words: str) -> Arm:
        config = Composer().compose(
            [
                *("model=smoke", "train.steps=8", "global_bsz=8", "seq_len=32"),
                *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
                *(f"run.device={device}", "train.eval_every=0", "run.log_every=4", *words),
            ]
        )
        corpus = prepare(config.data)
        state = make_state(config, corpus.vocab_size, torch.device(device))
        return Arm(config, corpus, state, torch.device(device))

    return made


def go(arm: Arm) -> None:
    step = arm.next_step()
    outcome = accumulate_gradients(arm.state.model, arm.objective, step, arm.state.balance)
    arm.finish(step, outcome)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_update_that_is_not_finite_is_never_made(arm: Made, device: str) -> None:
    made = arm(device)
    made.looks_later = True
    go(made)
    before = {name: each.clone() for name, each in made.state.model.state_dict().items()}
    with torch.no_grad():
        made.state.model.head.fill_(float("nan"))
    go(made)
    with torch.no_grad():
        made.state.model.head.copy_(before["head"])
    go(made)  # which would be finite again
    for name, each in made.state.model.state_dict().items():
        assert torch.equal(each, before[name]), name
    with pytest.raises(TrainingError, match=r"^step 2: "):
        go(made)


def test_looking_later_changes_no_step(arm: Made) -> None:
    weights = []
    for later in (False, True):
        made = arm("cpu")
        made.looks_later = later
        while not made.done:
            go(made)
        weights.append(made.state.model.state_dict())
    assert all(torch.equal(each, weights[1][name]) for name, each in weights[0].items())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "words",
    [
        ("scope=global",),
        ("scope=shuffled",),
        ("scope=domain",),
        ("run.device_bsz=4",),
        ("balance.estimator=buffer", "balance.pass_bsz=4"),
        ("balance.estimator=ema",),
    ],
    ids=" ".join,
)
def test_no_step_waits_for_the_gpu(arm: Made, words: tuple[str, ...]) -> None:
    made = arm("cuda", "train.precision=bf16", "model.d_model=64", *words)
    go(made)  # the first one allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        go(made)
        go(made)
    finally:
        torch.cuda.set_sync_debug_mode("default")
