"""Keys that are chosen by search (Optuna), on what no report shows.

A trial trains with tuning seeds, 1000 and up, and is judged by the `tune` half of the validation
documents alone (protocol, section 2). Its runs are in `runs/tuning`, which no report reads, beside
a journal of the trials. The same search goes on where it stopped. One process at a time makes its
trials.
"""

import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moebench.config.compose import Composer
from moebench.config.identity import run_name
from moebench.data.corpus import prepare
from moebench.disk import make_folder, parse_json, read_lines, reason, regular_status
from moebench.errors import CONTINUES, ConfigError, LockedError, MoebenchError, Stopped
from moebench.experiment import run_experiment
from moebench.lock import check_held, hold
from moebench.records import Record
from moebench.seals import refuse_link
from moebench.searches import METRIC, Outcome, Space
from moebench.train.loop import Event

SPREAD = 10  # trials before Optuna's sampler chooses
AXES = 16  # ranges that have the same shares in every search
OnEvent = Callable[[Event], None]
Follow = Callable[[str, int], Any]  # run and steps -> a context with a function of events


class Search(Space):
    """A search by Optuna, see `Space`.

    Raises ConfigError where Optuna is missing, too.
    """

    def __init__(
        self, composer: Composer, words: Sequence[str], seeds: int, runs_dir: Path
    ) -> None:
        self._optuna = _library()
        super().__init__(composer, words, seeds, runs_dir)

    def run(self, trials: int, follow: Follow, command: str = "") -> Iterator[Outcome]:
        """Yield the trials that ended earlier, then train until there are `trials` in all.

        Raises:
            Stopped: on a signal, after a checkpoint; the same search then goes on.
            LockedError: if another process makes its trials, or trains a run of it.
            MoebenchError: if all trials failed.
        """
        refuse_link(self.folder)
        with hold(Record(self.journal), "making its trials"):
            yield from self._run(trials, follow, command)

    def _run(self, trials: int, follow: Follow, command: str) -> Iterator[Outcome]:
        study, outcomes, left = self._known()
        self.write(outcomes, trials)
        yield from outcomes
        while len(outcomes) < trials:
            if left:  # it was interrupted, and has chosen its values
                number, words = left[0].number, left.pop(0).words.split()
            else:
                trial = self._ask(study, len(outcomes))
                number, words = trial.number, [each.ask(trial) for each in self.intervals]
                trial.set_user_attr("words", " ".join(words))
            outcome = self._train(number, words, follow, command)
            check_held(Record(self.journal))
            failed = self._optuna.trial.TrialState.FAIL if outcome.value is None else None
            study.tell(number, outcome.value, state=failed)
            outcomes.append(outcome)
            self.write(outcomes, trials)
            yield outcome
        if all(outcome.value is None for outcome in outcomes):
            raise MoebenchError(
                f"moebench tune: none of {len(outcomes)} trials could be trained; the last one: "
                f"{outcomes[-1].reason or 'see the lines above'}"
            )

    def _ask(self, study: Any, known: int) -> Any:
        """The trial after so many others.

        Its values depend on what these found and on their number alone, so that a search may be
        stopped. The first trials are spread over the ranges, in the same way in every search.
        """
        study.sampler = self._optuna.samplers.TPESampler(seed=known, n_startup_trials=SPREAD)
        queued = any(trial.state.name == "WAITING" for trial in study.get_trials())
        if known < SPREAD and not queued:  # else it was killed before it asked
            shares = zip(self.intervals, spread(len(self.intervals))[known], strict=True)
            values = [(each, each.at(share)) for each, share in shares]
            study.enqueue_trial({e.key: round(v) if e.whole else v for e, v in values})
        return study.ask()

    def _known(self) -> tuple[Any, list[Outcome], list[Outcome]]:
        """The study in the journal, its trials that have ended, and those that have not.

        Raises ConfigError for a journal that no search wrote.
        """
        try:
            make_folder(self.folder)
            _check_journal(self.journal)
            study, known = self._study(), ([], [])
            for trial in study.get_trials():
                ended, words = trial.state.is_finished(), trial.user_attrs.get("words", "")
                if not words:
                    continue  # it was killed before it had values
                outcome = Outcome(trial.number, words, trial.value if ended else None)
                if not self.made(outcome):
                    raise ValueError(f"trial {trial.number} is of no search of these ranges")
                known[not ended].append(outcome)
        except MoebenchError:
            raise
        except Exception as error:  # the library raises errors of many types
            raise ConfigError(
                f"{self.journal}: cannot be used ({reason(error)}); remove it to start afresh"
            ) from None
        return study, *known

    def _study(self) -> Any:
        storages = self._optuna.storages
        backend = storages.journal.JournalFileBackend(str(self.journal), lock_obj=NoLock())
        storage = storages.JournalStorage(backend)
        return self._optuna.create_study(
            study_name=self.name, storage=storage, direction="minimize", load_if_exists=True
        )

    def _train(self, number: int, words: Sequence[str], follow: Follow, command: str) -> Outcome:
        """Train the runs of a trial, those that are not done."""
        values = []
        try:
            for seed in self.seeds:
                treatment = self.treatment(words, seed)
                corpus = prepare(treatment.config.data)
                name = run_name(treatment, corpus.content_hash)
                with follow(f"trial {number}: {name}", treatment.config.train.steps) as on_event:
                    record = run_experiment(
                        treatment,
                        corpus,
                        self.folder,
                        command=command,
                        resume=True,
                        on_event=on_event,
                    )
                values.append(float(record.summary()[METRIC]))
        except LockedError:
            raise
        except MoebenchError as error:
            told = str(error).replace(CONTINUES, "the same search continues")
            if isinstance(error, Stopped):
                error.args = (told,)
                raise
            # it diverged, or the values do not go together
            return Outcome(number, " ".join(words), None, told)
        return Outcome(number, " ".join(words), math.fsum(values) / len(values))


class NoLock:
    """In place of Optuna's lock, which outlives a killed process: a search has its own, see `run`.

    Optuna waits without end for a lock that links to a relative path.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _check_journal(path: Path) -> None:
    """Raise OSError or ValueError for a file that holds anything but lines of JSON objects.

    A last line that a killed process left torn is cut off, since the next one would be added to it.
    """
    if not os.path.lexists(path):
        return
    length = 0
    for number, line in enumerate(read_lines(path), 1):
        try:
            parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} {error}") from None
        length += len(line) + 1
    if length < regular_status(path).st_size:
        os.truncate(path, length)


def spread(ranges: int) -> list[list[float]]:
    """Where the first trials lie in each range: shares from 0 to 1, [SPREAD, ranges].

    Points of Sobol: of the first 4 and of the first 8, each has a fourth or an eighth of a range
    for itself. The last range has the same shares whatever the number of ranges, and so have those
    before it, so that arms with a common last range try the same values of it.
    """
    from scipy.stats import qmc

    axes = qmc.Sobol(max(ranges, AXES), rng=np.random.default_rng(0)).random_base2(4)
    return axes[:SPREAD, :ranges][:, ::-1].tolist()


def _library() -> Any:
    try:
        library = importlib.import_module("optuna")
    except ImportError:
        raise ConfigError(
            "moebench tune: needs the Optuna library; run pip install 'moebench[tune]'"
        ) from None
    library.logging.set_verbosity(library.logging.ERROR)
    return library
