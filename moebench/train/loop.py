"""The training loop: yields the events of each step, and leaves recording them to the caller.

A batch is a function of (seed, step), and an initial weight of (seed, name). A loop that starts
from a checkpoint of step n therefore continues as if it had never stopped, on the CPU of one
machine bit for bit.
"""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moebench.catalogue import is_settled
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import Meaning, Treatment
from moebench.data.batches import make_batches
from moebench.data.corpus import Corpus
from moebench.train.average import averaged, move
from moebench.train.build import COMPUTE, State, make_objective
from moebench.train.feed import Feed
from moebench.train.finite import FiniteCheck
from moebench.train.forces import forces
from moebench.train.gradients import accumulate_gradients, estimator_error
from moebench.train.measure import Evaluation, evaluate, fetched, recent_load, step_metrics
from moebench.train.optimizer import learning_rate
from moebench.train.prescribed import Place, prescription_of
from moebench.train.ranks import Ranks
from moebench.train.step import Outcome, Step, initial_states, steering_after
from moebench.train.update import Update, apply


@dataclass
class Event:
    """The results of one step: its metrics if it is logged, and the routing of an evaluation.

    `row` is None at a step that is not logged; `routing` is None without an evaluation. While the
    metrics are on their way from a GPU, the row is `pending`: the next step can be launched before
    `wait` waits for them. `selections` [layers, sequences, tokens, slots] of the step (`train`) and
    of an evaluation's texts are there with `run.record_selections`.
    """

    step: int
    row: dict[str, Any] | None = None
    routing: dict[str, np.ndarray] | None = None
    selections: dict[str, Tensor] = field(default_factory=dict)
    pending: Callable[[], dict[str, Any]] | None = None

    def wait(self) -> None:
        """Wait for the pending metrics and store them in `row`.

        Raises TrainingError if a step so far was not finite.
        """
        if self.pending is not None:
            read, self.pending = self.pending, None
            self.row = read()


@dataclass
class Clock:
    """Time and tokens since the last logged row; only training counts.

    On a GPU it is read when the metrics of a step arrive. The time to record them is then counted
    too: it delays the next step only if it takes longer than that step.
    """

    start: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    steps: int = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.start += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        return {
            "speed/tokens_per_second": self.tokens / seconds,
            "speed/step_seconds": seconds / self.steps,
        }


def train(
    config: Meaning,
    corpus: Corpus,
    state: State,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Iterator[Event]:
    """Train from `state.step` to the end, in place, yielding an Event for each step.

    A run that starts at step 0 yields that step first, with an evaluation. The metrics of every
    step of the last tenth are logged whatever `run.log_every` is, so that the key changes no
    summary. Only the first of several ranks evaluates.

    Raises:
        TrainingError: before the update of a step whose loss or gradient is not finite.
    """
    run = TrainingRun(config, corpus, state, device, ranks)
    if state.step == 0:
        event = run.begin()
        with run.clock.paused():
            yield event
    while not run.done:
        step = run.next_step()
        outcome = accumulate_gradients(state.model, run.objective, step, state.balance)
        event = run.finish(step, outcome)
        event.wait()
        with run.clock.paused():  # the caller's time is not training time
            yield event


class TrainingRun:
    """One run in training: its batches, its state, and the events of each step.

    It does not compute gradients, and knows nothing of other runs in its stack.
    """

    def __init__(
        self,
        config: Meaning,
        corpus: Corpus,
        state: State,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        treatment = Treatment.of(config)
        self.config = config = treatment.config
        self.corpus, self.state, self.device = corpus, state, device
        self.ranks = ranks or Ranks()
        self.objective = make_objective(treatment, corpus.domains)
        self.device_bsz = config.run.device_bsz or config.global_bsz // self.ranks.size
        self.clock = Clock()
        self.finite = FiniteCheck(state, self.objective, device)
        self.prescription = prescription_of(config, corpus, device)
        named = config.data.domain_token
        self._feed = Feed(make_batches(corpus, config), device, named=named)
        self._estimator_error: dict[str, float] = {}

    @property
    def done(self) -> bool:
        return self.state.step >= self.config.train.steps

    def begin(self) -> Event:
        """Step 0, with an evaluation."""
        if not self.ranks.first:
            return Event(0, {"step": 0})
        with self.clock.paused():
            found = self._evaluate(0)
        return Event(
            0, {"step": 0, **found.row}, found.arrays or None, self._kept(found.selections)
        )

    def next_step(self) -> Step:
        """The next step, with the gradients at zero."""
        config, state, number = self.config, self.state, self.state.step + 1
        tokens, domain = self._feed(number)
        step = Step(
            tokens,
            self.device_bsz,
            number=number,
            domain=domain,
            seed=_draw_seed(config.seed, number),
            draws=state.model.gating.draws,
            ranks=self.ranks,
            forced=self.prescription
            and self.prescription(tokens[:, :-1], domain, Place("train", number)),
            uncounted=int(config.data.domain_token),
        )
        if state.balance is None:
            state.balance = initial_states(self.objective, state.model, step)
        self.finite.begin(number)
        self._estimator_error = {}
        if self._is_logged(number) and config.balance.estimator_error:
            with self.clock.paused():
                distance = estimator_error(state.model, self.objective, step, state.balance)
            self._estimator_error = {
                f"balance/gradient_{name}": value for name, value in distance._asdict().items()
            }
        state.optimizer.zero_grad()
        return step

    def update(self, step: Step, outcome: Outcome) -> Update:
        """The update of a step, which is still to be applied."""
        config = self.config
        rate = learning_rate(config.optim, step.number, config.train.steps)
        return Update(self.state, self.finite, outcome, step.number, config.optim.clip, rate)

    def finish(self, step: Step, outcome: Outcome) -> Event:
        """Update the parameters by the gradients in them, unless that is done.

        Raises:
            TrainingError: before the update, if a loss or gradient is not finite.
        """
        config, state, number, steps = self.config, self.state, step.number, self.config.train.steps
        norm = apply(self.update(step, outcome)) if outcome.norm is None else outcome.norm
        move(state.average, state.model, config, number)
        load_before, state.load = state.load, recent_load(state.load, outcome)
        state.step, state.balance = number, outcome.states
        self.clock.tokens += step.sequences * config.seq_len
        self.clock.steps += 1

        event = Event(number)
        event.selections = self._kept({"train": outcome.routing.expert_index})
        if self._is_logged(number):
            event.pending = self._pending_row(outcome, load_before, norm)
        every = config.train.eval_every
        evaluates = self.ranks.first and (number == steps or (every and number % every == 0))
        # ranks communicate in a fixed order, and an estimator's error waits for the device anyway
        deferred = (
            self.finite.deferred and self.ranks.size == 1 and not config.balance.estimator_error
        )
        if evaluates or not deferred:
            event.wait()
        if evaluates:
            self.finite.check()
            with self.clock.paused():
                found = self._evaluate(number)
                pulls = forces(state.model, self.objective, step, state.balance or ())
            event.routing = found.arrays or None  # a dense model has none
            event.selections |= self._kept(found.selections)
            event.row = {"step": number, **(event.row or {}), **found.row, **pulls}
        return event

    def _pending_row(
        self, outcome: Outcome, load_before: Tensor | None, norm: Tensor
    ) -> Callable[[], dict[str, Any]]:
        """A function that waits for the device and returns the row of a step."""
        number, error, rate = self.state.step, self._estimator_error, self.state.optimizer.lr
        metrics = step_metrics(
            outcome,
            self.objective,
            before=load_before,
            assignment_bytes=_assignment_bytes(self.config),
        )
        values = fetched(torch.stack([norm.double(), self.finite.first_bad.double()]))

        def row() -> dict[str, Any]:
            grad_norm, first_bad = values().tolist()
            if first_bad:
                self.finite.check()
            made = {
                "step": number,
                **metrics(),
                **error,
                **self.ranks.pop_allreduce_cost(self.clock.steps),
                "train/grad_norm": grad_norm,
                "train/lr": rate,
                **self.clock.read(),
                "memory/peak_bytes": _peak_bytes(self.device),
            }
            self.clock = Clock()
            return made

        return row

    def _kept(self, selections: dict[str, Tensor]) -> dict[str, Tensor]:
        """Selections if they are recorded; a dense model has none."""
        recorded = self.config.run.record_selections
        return {part: index for part, index in selections.items() if recorded and len(index)}

    def _evaluate(self, number: int) -> Evaluation:
        model = self.state.model
        with averaged(model, self.state.average):
            return evaluate(
                self.config,
                self.corpus,
                model,
                self.device,
                steering_after(self.objective, model, self.state.balance),
                self.prescription,
                device_bsz=self.device_bsz,
                step=number,
            )

    def _is_logged(self, number: int) -> bool:
        steps = self.config.train.steps
        return number % self.config.run.log_every == 0 or is_settled(number, steps)


def _draw_seed(seed: int, step: int) -> int:
    """The seed of a step's draws, which are made on the CPU so that every device draws the same."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1


def _assignment_bytes(config: ExperimentConfig) -> int:
    """Of a hidden state sent to an expert and its output sent back, forward and backward."""
    return 4 * config.model.d_model * COMPUTE[config.train.precision].itemsize


def _peak_bytes(device: torch.device) -> int:
    """The most memory so far: of this run on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
