"""One process's work on one run: it trains the run, records each step, and seals the record."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import torch

from moebench.config.compose import to_yaml
from moebench.config.cost import training_flops
from moebench.config.treatment import Treatment, moe_layers
from moebench.data.corpus import Corpus
from moebench.disk import reason
from moebench.errors import LockedError, MoebenchError, RecordError, Stopped
from moebench.experiment.execution import check_device, prepare_device, resolved
from moebench.experiment.provenance import continued, describe, shape_dependent_products
from moebench.experiment.resumption import continued_from, say
from moebench.experiment.summary import routing_change, seal
from moebench.experiment.trouble import explained
from moebench.lock import check_held
from moebench.protection import CHECKPOINTS, permit, protected_rows, protection_of
from moebench.records import Record, manifest_bytes
from moebench.selections import append, cut, entries_of
from moebench.tensorboard import View
from moebench.train import kernels as kernels_of
from moebench.train.build import State, make_objective, make_state
from moebench.train.checkpoint import save_checkpoint
from moebench.train.gradients import Wrap
from moebench.train.loop import Event, TrainingRun
from moebench.train.prescribed import Prescription
from moebench.train.ranks import Ranks
from moebench.train.stack import GradientRequest, GradientRequests

# Seconds between updates of status.json: at least so many, for each run of a stack; and a share of
# the run's time, so that thousands of long runs do not keep a shared file system busy.
STATUS_EVERY, STATUS_SHARE, STATUS_MOST = 0.5, 0.01, 10.0
IN_STATUS = (
    *("train/loss", "valid/nats", "load/max_vio_micro", "specialization/domain"),
    "speed/tokens_per_second",
)


class Session:
    """Trains and records one run, from its last checkpoint if it has one.

    Args:
        treatment: of a complete and checked config.
        corpus: the prepared data of `treatment.config.data`.
        record: of the run, held by this process.
        ranks: the processes that share the run; this is the first.
        signals: the stop signals that have arrived.
        command: the command line, for the manifest.
        stacked: the number of runs in the stack.
        preferred: step of the checkpoint to continue from, see `continued_from`.
        on_event: called after each step.
    """

    def __init__(
        self,
        treatment: Treatment,
        corpus: Corpus,
        record: Record,
        ranks: Ranks,
        signals: Sequence[int],
        *,
        command: str = "",
        stacked: int = 1,
        preferred: int | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.treatment, self.config = treatment, treatment.config
        self.corpus, self.record, self.ranks = corpus, record, ranks
        self.signals, self.command, self.stacked = signals, command, stacked
        self.preferred = preferred
        self.on_event = on_event
        self.state: State | None = None
        self.event: Event | None = None  # the latest step
        self.latest: dict[str, Any] = {}  # metrics that the status repeats
        self.mfu_of_rate = 0.0  # share of the peak, for a rate of one token a second
        self.start = self.last_status = 0.0

    def run(self) -> GradientRequests:
        """Train the run to its end; a generator that requests the gradients of each step.

        Raises: as `run_experiment`; the record's status then says why.
        """
        self.record.check_links()
        resumed = self.record.exists()
        execution = resolved(self.config, self.record if resumed else None, self.ranks)
        self.config = replace(self.config, run=execution)
        self.treatment = replace(self.treatment, config=self.config)
        device = self.ranks.device(str(execution.device))
        check_device(self.config, device)
        prepare_device(execution, device)
        self.start = time.monotonic() - (self._seconds_before() if resumed else 0.0)
        manifest = {
            **describe(self.treatment, self.corpus, device, self.command),
            "ranks": self.ranks.size,
            "stacked": self.stacked,
        }
        try:
            run, wrap = self._begin(manifest, device, resumed=resumed)
            with View(self.record) as view:
                yield from self._train(run, wrap, view)
                yield None  # the others of the stack save their last step before one is sealed
                seal(self.treatment, self.record, self._seconds(), view.conclude)
        except (Stopped, KeyboardInterrupt) as stopped:
            self._record_pending()
            self._end("stopped", str(stopped) or "interrupted twice")
            raise
        except LockedError:
            raise  # the record is another process's now
        except Exception as error:
            self._record_pending()
            error = explained(error, self.config, self.record, device, self.stacked)
            known = isinstance(error, MoebenchError)
            self._end("failed", str(error) if known else f"{type(error).__name__}: {error}")
            raise error from None
        try:
            self._set_status("done")
        except OSError as error:  # the seal says so as well
            say(f"{self.record.path}/status.json: cannot be written ({reason(error)}); it is done")

    def _seconds_before(self) -> float:
        """The time of earlier sessions; 0, with a warning, if their status was changed."""
        try:
            return self.record.status().get("seconds") or 0.0
        except RecordError as error:
            say(f"{error}; the time of earlier sessions is not counted")
            return 0.0

    def _begin(
        self, manifest: dict[str, Any], device: torch.device, *, resumed: bool
    ) -> tuple[TrainingRun, Wrap | None]:
        """Begin the record, or cut it to its last checkpoint, and load the state."""
        config, corpus, record = self.config, self.corpus, self.record
        kernels = kernels_of.resumed(record.manifest(), config, device) if resumed else None
        if kernels is None:
            runs_dir = record.path.parent
            kernels = kernels_of.choose(
                config, corpus.vocab_size, runs_dir, device, self.ranks.size
            )
        manifest["kernels"] = asdict(kernels)
        manifest["shape_dependent"] = shape_dependent_products(
            self.treatment, corpus, device, fused=kernels.fused
        )
        if not resumed:
            record.begin(to_yaml(config), manifest)
        self.state = state = make_state(
            self.treatment, corpus.vocab_size, device, len(corpus.domains)
        )
        kernels_of.apply(kernels, state.model)
        self.mfu_of_rate = training_flops(config, corpus.vocab_size) / kernels.peak_flops
        if resumed:
            objective = make_objective(self.treatment, corpus.domains)
            found = continued_from(record, state, objective, device, self.preferred)
            now = continued(record.manifest(), manifest, state.step)
            permit(record, to_yaml(config).encode(), manifest_bytes(now))
            record.begin(to_yaml(config), now)
            self._cut(state.step if found else -1)
        self._set_status("running")
        self.ranks.broadcast((config.run, state.step, kernels))
        run = TrainingRun(self.treatment, corpus, state, device, self.ranks)
        if isinstance(run.prescription, Prescription):
            record.save_map(run.prescription.map.to_bytes())
        return run, kernels_of.wrapper(kernels)

    def _train(self, run: TrainingRun, wrap: Wrap | None, view: View) -> GradientRequests:
        """Train to the last step, and record each step: on a GPU while the next one is computed."""
        self.event = run.begin() if run.state.step == 0 else None
        while True:
            event = self.event
            if event is not None and (
                event.pending is None or self._saves_at(event.step) or self.signals
            ):
                event.wait()
                with run.clock.paused():
                    self._record(event, view)
                    self._keep(event, run)
                self.event = None
            if run.done:
                return
            step = run.next_step()
            outcome = yield GradientRequest(run, step, wrap)
            if self.event is not None:  # the GPU computes this step while the last is recorded
                self.event.wait()
                self._record(self.event, view)
            self.event = run.finish(step, outcome)

    def _record(self, event: Event, view: View) -> None:
        """Record a step. The weights may be those of the next one already."""
        check_held(self.record)
        if event.row is not None:
            row = self._append(event)
            if event.routing is not None:
                self.record.save_routing(event.step, event.routing)
            view.add(row, event.routing)
        for part, index in event.selections.items():
            entries = len(self._entries(part))
            experts = self.config.model.num_experts
            append(self.record.path, part, index.cpu().numpy(), experts=experts, entries=entries)
        if self.on_event is not None:
            self.on_event(event)
        if time.monotonic() - self.last_status > status_every(self._seconds(), self.stacked):
            self.last_status = time.monotonic()
            self._set_status("running")

    def _keep(self, event: Event, run: TrainingRun) -> None:
        """Save a checkpoint if one is due after a recorded step, and stop on a signal."""
        # read once: a signal may arrive at any moment
        stopping = self.ranks.broadcast(self.signals[0] if self.signals else None)
        if event.step and (self._saves_at(event.step) or stopping):
            run.finite.check()
            kept = self.record.path / CHECKPOINTS
            save_checkpoint(kept, run.state, protection_of(self.record))
        if stopping and event.step < self.config.train.steps:
            raise Stopped(self.record.path, event.step, stopping)

    def _entries(self, part: str) -> list[int]:
        """The steps of the entries that a file of selections has in the end."""
        return entries_of(part, self.config.train.steps, self.config.train.eval_every)

    def _cut(self, step: int) -> None:
        """Remove what came after a step, from which the run continues; -1: there is none."""
        wrong = self.record.cut(step, protected_rows(self.record, step) if step >= 0 else 0)
        if wrong:
            say(f"{wrong}; it came after the last checkpoint, and its step is trained again")
        self._cut_selections(step)

    def _cut_selections(self, step: int) -> None:
        """Remove the selections after a step, from which the run continues.

        Raises RecordError if earlier ones are missing.
        """
        if not self.config.run.record_selections or not moe_layers(self.config):
            return
        parts = ["train", "valid", "tune", *(["heldout"] if self.corpus.heldout else [])]
        kept = {part: sum(at <= step for at in self._entries(part)) for part in parts}
        try:
            cut(self.record.path, kept)
        except ValueError as error:
            raise RecordError(
                f"run.record_selections=true: {self.record.path}: {error}, which the run has "
                "passed; --force starts afresh"
            ) from None

    def _append(self, event: Event) -> dict[str, Any]:
        """Append the row of a step to the record, and return it."""
        row = {**(event.row or {}), **routing_change(self.record, event)}
        if "speed/tokens_per_second" in row and self.stacked == 1:
            row["speed/mfu"] = row["speed/tokens_per_second"] * self.mfu_of_rate
        row["time"] = round(self._seconds(), 3)
        self.record.append(row)
        for key in IN_STATUS:
            self.latest[key] = row.get(key, self.latest.get(key))
        return row

    def _record_pending(self) -> None:
        """Record the latest step if it was made, although the next one failed."""
        if self.event is not None and self.event.pending is not None:
            with suppress(Exception):
                self.event.wait()
                self._append(self.event)

    def _end(self, status: str, reason: str) -> None:
        """Set the status of a run that stopped or failed, unless its record is sealed already."""
        if not self.record.is_done():
            with suppress(OSError):  # the disk may be full: the error says so
                self._set_status(status, reason=reason)

    def _set_status(self, status: str, **more: Any) -> None:
        self.record.set_status(
            status,
            step=self.state.step if self.state else 0,
            steps=self.config.train.steps,
            seconds=round(self._seconds(), 3),
            **self.latest,
            **more,
        )

    def _saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return step % self.config.run.checkpoint_every == 0 or step == self.config.train.steps

    def _seconds(self) -> float:
        """Time of the run so far, over all its sessions."""
        return time.monotonic() - self.start


def status_every(seconds: float, stacked: int = 1) -> float:
    """Seconds between updates of the status of a run.

    Args:
        seconds: that the run has taken so far.
        stacked: runs of its process.
    """
    return min(STATUS_MOST, max(STATUS_EVERY * stacked, STATUS_SHARE * seconds))
