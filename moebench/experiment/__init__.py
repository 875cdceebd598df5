"""One config becomes one record: prepare, train, evaluate, seal."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from moebench.config.identity import run_name
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import Meaning, Treatment
from moebench.data.batches import check_epochs
from moebench.data.corpus import Corpus
from moebench.data.maps import check_map
from moebench.disk import remove_folder
from moebench.errors import MoebenchError, RecordError, Stopped, TrainingError
from moebench.experiment.execution import check_ranks, device_kind
from moebench.experiment.resumption import common_step
from moebench.experiment.session import Session
from moebench.lock import hold
from moebench.processes import collected
from moebench.protection import checkpoint_path
from moebench.records import Record
from moebench.train.build import make_objective, make_state
from moebench.train.checkpoint import restore
from moebench.train.expert_kernels import check_experts
from moebench.train.kernels import apply
from moebench.train.loop import Event, train
from moebench.train.ranks import Ranks, joined, world_size
from moebench.train.stack import train_in_lockstep
from moebench.train.starting import check_start

DONE = "done"  # what the first rank says in place of a beginning if there is nothing to train


def run_experiment(
    config: Meaning,
    corpus: Corpus,
    runs_dir: Path,
    *,
    command: str = "",
    resume: bool = False,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Record:
    """Train one run and return its sealed record; at once if the run is done.

    Args:
        config: complete and checked, or its treatment.
        corpus: the prepared data of its config.
        runs_dir: the directory of records.
        command: the command line, for the manifest.
        resume: continue an unfinished record, from its last checkpoint or from step 0.
        force: start afresh, and replace any record of the run.
        on_event: called after each step.

    Raises:
        RecordError: if there is an unfinished record and neither `resume` nor `force`, or if the
            record cannot be written.
        LockedError: if another process trains the run.
        TrainingError: if the run fails; its record then says so, and why.
        Stopped: on SIGINT, SIGTERM, SIGUSR1 or SIGHUP, after a checkpoint; the run can be resumed.
    """
    treatment = Treatment.of(config)
    config = treatment.config
    record = Record(runs_dir / run_name(treatment, corpus.content_hash))
    if record.is_done() and not force:
        record.refuse_changes()
        if world_size() == 1:
            return record
    check_run(treatment, corpus)
    check_ranks(config)
    with joined(device_kind(config.run)) as ranks:
        if not ranks.first:
            return _follow(treatment, corpus, record, ranks)
        try:
            with hold(record):
                if record.is_done() and not force:
                    ranks.broadcast(DONE)
                    return record
                _clear(record, resume=resume, force=force)
                with collected() as signals:
                    of_run = treatment, corpus, record, ranks, signals
                    session = Session(*of_run, command=command, on_event=on_event)
                    [error] = train_in_lockstep([session.run()])
                if error is not None:
                    raise error
                return record
        except MoebenchError:
            ranks.abort()
            raise


def run_stack(
    configs: Sequence[ExperimentConfig],
    corpora: Sequence[Corpus],
    runs_dir: Path,
    *,
    command: str = "",
) -> list[Exception | None]:
    """Train several runs as one stack; unfinished ones continue from their last checkpoints.

    Args:
        configs: complete and checked, of equal `stackable.stack_key`.
        corpora: the prepared data of each.
        runs_dir: the directory of records.
        command: the command line, for the manifests.

    Returns:
        For each run, what `run_experiment` would raise; None if it is done. A LockedError for one
        that another process trains.
    """
    pairs = list(zip(map(Treatment.of, configs), corpora, strict=True))
    records = [Record(runs_dir / run_name(config, data.content_hash)) for config, data in pairs]
    errors: list[Exception | None] = [None for _ in pairs]
    with ExitStack() as held, collected() as signals:
        numbers = []
        for number, ((treatment, data), record) in enumerate(zip(pairs, records, strict=True)):
            try:
                check_run(treatment, data)
                held.enter_context(hold(record))
                if record.is_done():
                    record.refuse_changes()
                else:
                    numbers.append(number)
            except MoebenchError as error:
                errors[number] = error
        preferred = common_step([records[number] for number in numbers])
        sessions = [
            Session(
                pairs[number][0],
                corpora[number],
                records[number],
                Ranks(),
                signals,
                command=command,
                stacked=len(numbers),
                preferred=preferred,
            )
            for number in numbers
        ]
        failures = train_in_lockstep([session.run() for session in sessions])
        for number, error in zip(numbers, failures, strict=True):
            errors[number] = error
    return errors


def check_run(treatment: Treatment, corpus: Corpus) -> None:
    """Raise the errors that only data or machine can show, before anything is written."""
    check_experts(treatment.config, torch.device(device_kind(treatment.config.run)))
    check_epochs(corpus, treatment.config)
    check_map(treatment.config, corpus)
    check_start(treatment.config, corpus)
    make_objective(treatment, corpus.domains)


def _clear(record: Record, *, resume: bool, force: bool) -> None:
    """Remove a record that is replaced; raise RecordError for one that is neither nor resumed."""
    if record.exists() and force:
        remove_folder(record.path)  # at once: what a kill leaves must not pass for a run
    if record.exists() and not resume:
        other = record.other_version()
        raise RecordError(
            f"{record.path}: is an unfinished run{other and f' of {other}'}; --resume continues "
            "it, --force starts afresh"
        )


def _follow(treatment: Treatment, corpus: Corpus, record: Record, ranks: Ranks) -> Record:
    """Train a rank's share of every step; the first rank decides how, and writes the record."""
    begun = ranks.broadcast(None)
    if begun == DONE:
        return record
    if begun is None:
        raise TrainingError(f"{record.path}: rank {ranks.rank}: the first rank did not begin")
    run, step, kernels = begun
    config, device = replace(treatment.config, run=run), ranks.device(run.device)
    treatment = replace(treatment, config=config)
    torch.set_num_threads(run.threads)
    state = make_state(treatment, corpus.vocab_size, device, len(corpus.domains))
    apply(kernels, state.model)
    try:
        if step:
            objective = make_objective(treatment, corpus.domains)
            restore(state, checkpoint_path(record.path, step), objective, device)
        with collected():  # the first rank acts on them
            for event in train(treatment, corpus, state, device, ranks):
                stopping = ranks.broadcast(None)
                if stopping and event.step < config.train.steps:
                    raise Stopped(record.path, event.step, stopping)
    except RuntimeError as error:
        raise TrainingError(
            f"{record.path}: rank {ranks.rank} stopped ({str(error).splitlines()[0]})"
        ) from None
    return record
