"""The training loop: yields what happened at each step, and leaves keeping it to the caller.

A batch is a function of (seed, step) and an initial weight of (seed, name), so a loop that starts
from a checkpoint of step n goes on as if it had never stopped, on a CPU bit for bit.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from moebench.config.schema import ExperimentConfig
from moebench.data.batches import make_batches
from moebench.data.corpus import Corpus
from moebench.errors import TrainingError
from moebench.model.transformer import MoETransformer
from moebench.records import SETTLED
from moebench.train.build import COMPUTE, State, make_objective
from moebench.train.feed import Feed
from moebench.train.forces import forces
from moebench.train.measure import evaluate, fetched, recent_load, step_metrics
from moebench.train.optimizer import learning_rate
from moebench.train.ranks import Ranks
from moebench.train.step import (
    Objective,
    Outcome,
    Step,
    accumulate_gradients,
    begin_states,
    estimator_error,
    objective_terms,
    steering_after,
)


@dataclass
class Event:
    """One step: its metrics where they are logged, and an evaluation's routing where there was one.

    `row` is None at a step that is not logged; `routing` is None without an evaluation. A row whose
    metrics are still on their way from a GPU is `pending`, so that the next step can be launched
    before `arrive` waits for it.
    """

    step: int
    row: dict[str, Any] | None = None
    routing: dict[str, np.ndarray] | None = None
    pending: Callable[[], dict[str, Any]] | None = None

    def arrive(self) -> None:
        """Have the row that is pending.

        Raises TrainingError if a step so far was not finite.
        """
        if self.pending is not None:
            read, self.pending = self.pending, None
            self.row = read()


@dataclass
class Clock:
    """Time and tokens since the last logged row; only training counts.

    On a GPU it is read when a step's metrics have arrived, and what is done with them then counts,
    as it does not hold up the next step unless it takes longer.
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
    config: ExperimentConfig,
    corpus: Corpus,
    state: State,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Iterator[Event]:
    """Train from `state.step` to the end, in place, yielding an Event for each step.

    A run that starts at step 0 yields that step first, with an evaluation. The metrics of every
    step of the last tenth are logged whatever `run.log_every` is, so that it changes no summary.
    Only the first of several ranks evaluates.

    Raises:
        TrainingError: before the update of a step whose loss or gradient is not finite.
    """
    arm = Arm(config, corpus, state, device, ranks)
    if state.step == 0:
        event = arm.begin()
        with arm.clock.paused():
            yield event
    while not arm.done:
        step = arm.next_step()
        outcome = accumulate_gradients(state.model, arm.objective, step, state.balance)
        event = arm.finish(step, outcome)
        event.arrive()
        with arm.clock.paused():  # what the caller does with it is no training
            yield event


class Arm:
    """One run that is being trained: its batches, its state, and what it tells of each step.

    It knows nothing of how gradients come about, or of the arms beside it.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        corpus: Corpus,
        state: State,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.corpus, self.state, self.device = config, corpus, state, device
        self.ranks = ranks or Ranks()
        self.objective = make_objective(config, corpus.domains)
        self.device_bsz = config.run.device_bsz or config.global_bsz // self.ranks.size
        self.clock = Clock()
        self._feed = Feed(make_batches(corpus, config), device)
        self._error: dict[str, float] = {}
        self._gradients_of = 0  # the step whose gradients lie in the parameters
        # On a GPU nothing waits for a step to see whether it is finite: the device itself refuses
        # an update that is not, and all after it, until someone looks.
        self.looks_later = device.type == "cuda"
        self._bad = torch.zeros((), device=device)  # the first step that was not finite
        self._seen: tuple[int, Outcome, Tensor] | None = None  # the last step

    @property
    def done(self) -> bool:
        return self.state.step >= self.config.train.steps

    def begin(self) -> Event:
        """Step 0, with an evaluation."""
        if not self.ranks.first:
            return Event(0, {"step": 0})
        with self.clock.paused():
            row, routing = self._evaluated()
        return Event(0, {"step": 0, **row}, routing)

    def next_step(self) -> Step:
        """The next step to go through, with gradients at zero."""
        config, state, number = self.config, self.state, self.state.step + 1
        tokens, domain = self._feed(number)
        step = Step(
            tokens,
            self.device_bsz,
            number=number,
            domain=domain,
            seed=_draw_key(config.seed, number),
            draws=state.model.gating.draws,
            ranks=self.ranks,
        )
        if state.balance is None:
            state.balance = begin_states(self.objective, state.model, step)
        self._error, self._gradients_of = {}, number
        if self._is_logged(number) and config.balance.estimator_error:
            with self.clock.paused():
                found = estimator_error(state.model, self.objective, step, state.balance)
            self._error = {
                f"balance/gradient_{name}": each for name, each in found._asdict().items()
            }
        state.optimizer.zero_grad()
        return step

    def finish(self, step: Step, outcome: Outcome) -> Event:
        """Update the parameters by the gradients that lie in them.

        Raises:
            TrainingError: before that, if a loss or gradient is not finite.
        """
        config, state, number, steps = self.config, self.state, step.number, self.config.train.steps
        gradients = [each.grad for each in state.model.parameters() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.looks_later:
            self._refuse_on_device(outcome, norm, number)
        else:
            _refuse_non_finite(state.model, self.objective, outcome, norm, number)
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), config.optim.clip, norm)
        rate = learning_rate(config.optim, number, steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        before, state.load = state.load, recent_load(state.load, outcome)
        state.step, state.balance = number, outcome.states
        self.clock.tokens += step.sequences * config.seq_len
        self.clock.steps += 1

        event = Event(number)
        every = config.train.eval_every
        if self._is_logged(number):
            event.pending = self._row(outcome, before, norm, rate)
        evaluates = self.ranks.first and (number == steps or (every and number % every == 0))
        # what the ranks tell each other has its place, and an estimator's error waits by itself
        late = self.looks_later and self.ranks.size == 1 and not config.balance.estimator_error
        if evaluates or not late:
            event.arrive()
        if evaluates:
            self.look()
            with self.clock.paused():
                row, event.routing = self._evaluated(tune=number == steps)
                pulls = forces(state.model, self.objective, step, state.balance or ())
            event.row = {"step": number, **(event.row or {}), **row, **pulls}
        return event

    def _row(
        self, outcome: Outcome, before: Tensor | None, norm: Tensor, rate: float
    ) -> Callable[[], dict[str, Any]]:
        """What gives the row of a step, once the device has come to its end."""
        number, error = self.state.step, self._error
        metrics = step_metrics(
            outcome,
            self.objective,
            before=before,
            assignment_bytes=_assignment_bytes(self.config),
        )
        values = fetched(torch.stack([norm.double(), self._bad.double()]))

        def row() -> dict[str, Any]:
            grad_norm, bad = values().tolist()
            if bad:
                self.look()
            found = {
                "step": number,
                **metrics(),
                **error,
                **self.ranks.take(self.clock.steps),
                "train/grad_norm": grad_norm,
                "train/lr": rate,
                **self.clock.read(),
                "memory/peak_bytes": _peak_bytes(self.device),
            }
            self.clock = Clock()
            return found

        return row

    def _evaluated(
        self, *, tune: bool = False
    ) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
        model = self.state.model
        steering = steering_after(self.objective, model, self.state.balance)
        row, routing = evaluate(self.config, self.corpus, model, self.device, steering, tune=tune)
        return row, routing or None  # a dense model has none

    def look(self) -> None:
        """Wait for the device, and see whether all steps so far were finite; before a checkpoint.

        Raises:
            TrainingError: for the first that was not. The weights are those before it.
        """
        if self.looks_later and self._seen is not None and (number := int(self._bad.item())):
            last, outcome, norm = self._seen
            if last == number:  # whose gradients still lie there, unless the next step has begun
                model = self.state.model if self._gradients_of == number else None
                _refuse_non_finite(model, self.objective, outcome, norm, number)
            raise TrainingError(f"step {number}: the loss or the gradient is not finite")

    def _refuse_on_device(self, outcome: Outcome, norm: Tensor, number: int) -> None:
        finite = torch.isfinite(norm) & torch.isfinite(outcome.cross_entropy)
        self._bad = torch.where((self._bad > 0) | finite, self._bad, number)
        self._seen = number, outcome, norm
        # the fused update does nothing where this is 1, as for a gradient scaler
        cast(Any, self.state.optimizer).found_inf = (self._bad > 0).float()

    def _is_logged(self, number: int) -> bool:
        steps = self.config.train.steps
        return number % self.config.run.log_every == 0 or number > steps * (1 - SETTLED)


def _draw_key(seed: int, step: int) -> int:
    """The seed of a step's draws, which are made on the CPU so that every device draws the same."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1


def _assignment_bytes(config: ExperimentConfig) -> int:
    """Of a hidden state sent to an expert and its output sent back, forward and backward."""
    return 4 * config.model.d_model * COMPUTE[config.train.precision].itemsize


def _refuse_non_finite(
    model: MoETransformer | None, objective: Objective, outcome: Outcome, norm: Tensor, step: int
) -> None:
    """Raise TrainingError for what is not finite; with None, not by the name of its gradient."""
    if math.isfinite(norm.item()) and math.isfinite(outcome.cross_entropy.item()):
        return
    for term, value in objective_terms(objective, outcome).items():
        if not math.isfinite(value):
            raise TrainingError(f"step {step}: the {term} is {value}")
    if model is None:
        raise TrainingError(f"step {step}: the gradient is not finite")
    for name, each in model.named_parameters():
        if each.grad is not None and not torch.isfinite(each.grad).all():
            raise TrainingError(f"step {step}: the gradient of {name} is not finite")
    raise TrainingError(f"step {step}: the norm of the gradient is too large for its precision")


def _peak_bytes(device: torch.device) -> int:
    """Most memory so far: of this run on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
