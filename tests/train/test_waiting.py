"""No step waits for the GPU, and an update that is not finite is still refused."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.errors import TrainingError
from moebench.experiment import run_experiment, session
from moebench.records import Record
from moebench.train.build import make_state
from moebench.train.gradients import accumulate_gradients
from moebench.train.loop import Event, TrainingRun
from moebench.train.step import Step

Made = Callable[..., TrainingRun]


@pytest.fixture
def arm(text_folder: Path) -> Made:
    def made(device: str, *words: str, log_every: int = 4) -> TrainingRun:
        config = Composer().compose(
            [
                *("model=smoke", "train.steps=8", "global_bsz=8", "seq_len=32"),
                *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
                *(
                    f"run.device={device}",
                    "train.eval_every=0",
                    f"run.log_every={log_every}",
                    *words,
                ),
            ]
        )
        corpus = prepare(config.data)
        state = make_state(config, corpus.vocab_size, torch.device(device))
        return TrainingRun(config, corpus, state, torch.device(device))

    return made


def go(arm: TrainingRun) -> Event:
    step = arm.next_step()
    outcome = accumulate_gradients(arm.state.model, arm.objective, step, arm.state.balance)
    return arm.finish(step, outcome)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_update_that_is_not_finite_is_never_applied(arm: Made, device: str) -> None:
    made = arm(device)
    made.finite.deferred = True
    go(made)
    before = {name: each.clone() for name, each in made.state.model.state_dict().items()}
    with torch.no_grad():
        made.state.model.head.fill_(float("nan"))
    go(made)
    with torch.no_grad():
        made.state.model.head.copy_(before["head"])
    go(made)  # this step is finite again
    for name, each in made.state.model.state_dict().items():
        assert torch.equal(each, before[name]), name
    event = go(made)  # nothing has waited for the device so far
    with pytest.raises(TrainingError, match=r"^step 2: the loss or the gradient is not finite$"):
        event.wait()


def test_the_parameter_that_is_not_finite_is_named_if_its_gradient_is_still_there(
    arm: Made,
) -> None:
    for later, name in ((False, " of blocks.0.attention.qkv"), (True, "")):
        made = arm("cpu", log_every=1)
        made.finite.deferred = True
        step = made.next_step()
        outcome = accumulate_gradients(made.state.model, made.objective, step)
        grad = made.state.model.get_parameter("blocks.0.attention.qkv").grad
        assert grad is not None
        grad[0, 0] = float("inf")
        event = made.finish(step, outcome)
        if later:  # by now the parameters hold the finite gradients of the next step
            accumulate_gradients(made.state.model, made.objective, made.next_step())
        with pytest.raises(TrainingError, match=rf"^step 1: the gradient{name} is not finite$"):
            event.wait()


def test_a_deferred_check_changes_no_step(arm: Made) -> None:
    weights = []
    for later in (False, True):
        made = arm("cpu")
        made.finite.deferred = later
        while not made.done:
            go(made)
        weights.append(made.state.model.state_dict())
    assert all(torch.equal(each, weights[1][name]) for name, each in weights[0].items())


class Late(TrainingRun):
    """A run on a CPU that defers its checks and rows, as on a GPU."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.finite.deferred = True


def test_rows_recorded_during_the_next_step_are_the_same(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        *("model=smoke", "train.steps=12", "global_bsz=8", "seq_len=32", "run.threads=1"),
        *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
        *("run.device=cpu", "train.eval_every=6", "run.log_every=2", "run.checkpoint_every=4"),
    )
    config = Composer().compose(list(words))
    corpus = prepare(config.data)
    rows, seen = [], []
    for name, kind in (("at_once", TrainingRun), ("late", Late)):
        monkeypatch.setattr(session, "TrainingRun", kind)
        of_run: list[int] = []
        record = run_experiment(
            config,
            corpus,
            tmp_path / name,
            on_event=lambda event, of_run=of_run: of_run.append(event.step),
        )
        seen.append(of_run)
        rows.append(
            [{key: each for key, each in row.items() if not timed(key)} for row in record.rows()]
        )
    assert seen[0] == seen[1] == list(range(13))
    assert rows[0] == rows[1]


def test_a_finished_step_is_recorded_although_the_next_one_fails(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_step(self: Late) -> Step:
        if self.state.step == 5:
            raise RuntimeError("no more")
        return TrainingRun.next_step(self)

    monkeypatch.setattr(Late, "next_step", next_step)
    monkeypatch.setattr(session, "TrainingRun", Late)
    config = Composer().compose(
        [
            *("model=smoke", "train.steps=12", "global_bsz=8", "seq_len=32", "run.threads=1"),
            *("data.valid_sequences=4", "data=folder", f"data.path={text_folder}"),
            *("run.device=cpu", "run.log_every=1", "train.eval_every=0"),
        ]
    )
    with pytest.raises(RuntimeError, match="no more"):
        run_experiment(config, prepare(config.data), tmp_path)
    [path] = tmp_path.glob("*-s0-*")
    assert [row["step"] for row in Record(path).rows()] == [0, 1, 2, 3, 4, 5]


def timed(key: str) -> bool:
    return key == "time" or key.startswith(("speed/", "memory/"))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Waiting for the GPU is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    made = arm("cuda", "train.precision=bf16", "model.d_model=64", *words, log_every=2)
    go(made)
    go(made).wait()  # the first ones allocate
    with no_waiting():
        go(made)
        event = go(made)
        assert event.pending is not None
        go(made)
    event.wait()
    assert event.row is not None
    assert event.row["step"] == 4
