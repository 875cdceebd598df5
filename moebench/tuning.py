"""Keys that are chosen by search (Optuna), on what no report shows.

A trial trains with tuning seeds, 1000 and up, and is judged by the `tune` half of the validation
documents alone (protocol, section 2). Its runs are in `runs/tuning`, which no report reads, beside
a journal of the trials. The same search goes on where it stopped.
"""

import hashlib
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moebench.config.compose import Composer
from moebench.config.identity import run_hash, run_name
from moebench.config.presets import KNOBS
from moebench.config.treatment import Treatment
from moebench.contents import is_number
from moebench.data.corpus import prepare
from moebench.disk import make_folder, parse_json, read_lines, reason, regular_status
from moebench.errors import ConfigError, LockedError, MoebenchError, Stopped
from moebench.experiment import run_experiment
from moebench.seals import refuse_link
from moebench.train.loop import Event

FIRST_SEED = 1000
FOLDER = "tuning"
METRIC = "tune/nats"
DIGITS = 4  # significant ones of a value, so that the printed one is the one that was trained
NUMBER = r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"([\w.]+)=({NUMBER})\.\.({NUMBER})(?::(log|linear))?")


@dataclass(frozen=True)
class Interval:
    """The values that a key may take.

    Attributes:
        log: whether factors count, and not differences.
        whole: whether they are whole numbers.
    """

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def read(cls, word: str) -> "Interval | None":
        """The interval that `key=low..high`, `:log` or `:linear` describes; None for other words.

        Without the last part, an interval over a factor of 10 or more counts factors.

        Raises ConfigError for one that is empty, or has a logarithm of what is not above 0.
        """
        match = RANGE.fullmatch(word)
        if match is None:
            return None
        key, low, high, how = match[1], float(match[2]), float(match[3]), match[4]
        if not low < high:
            raise ConfigError(f"{word}: holds no values; write the smaller number first")
        if how == "log" and low <= 0:
            raise ConfigError(f"{word}: must begin above 0, or end with :linear")
        whole = key in KNOBS and KNOBS[key].type in (int, int | None)
        return cls(key, low, high, how == "log" or (not how and 0 < 10 * low <= high), whole)

    def word(self, value: float) -> str:
        """The override that sets the key to a value."""
        return f"{self.key}={round(value)}" if self.whole else f"{self.key}={value:.{DIGITS}g}"

    def wrote(self, word: str) -> bool:
        """Whether `word` could have made an override."""
        key, _, value = word.partition("=")
        number = float(value) if re.fullmatch(NUMBER, value) else math.inf
        return key == self.key and math.isfinite(number) and self.word(number) == word

    def ask(self, trial: Any) -> str:
        """The override that a trial of Optuna chooses."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        ends = [(round if self.whole else float)(end) for end in (self.low, self.high)]
        return self.word(suggest(self.key, *ends, log=self.log))


class Outcome(NamedTuple):
    """A trial that has ended.

    Attributes:
        number: from 0.
        words: its overrides.
        value: mean of METRIC over seeds; None if it failed.
        reason: why it failed.
    """

    number: int
    words: str
    value: float | None
    reason: str = ""


OnEvent = Callable[[Event], None]
Follow = Callable[[str, int], Any]  # run and steps -> a context with a function of events


class Search:
    """A search over intervals.

    Args:
        composer: of configs.
        words: overrides, and at least one interval among them.
        seeds: of each trial.
        runs_dir: that holds the runs to report.

    Raises:
        ConfigError: for an invalid word, a seed among them, or Optuna that is missing.
    """

    def __init__(
        self, composer: Composer, words: Sequence[str], seeds: int, runs_dir: Path
    ) -> None:
        self._optuna = _library()
        read = {word: Interval.read(word) for word in words}
        self.intervals = [interval for interval in read.values() if interval is not None]
        self._composer, self._fixed = composer, [word for word in words if read[word] is None]
        self._seeds = range(FIRST_SEED, FIRST_SEED + seeds)
        self.folder = runs_dir / FOLDER
        if not self.intervals:
            raise ConfigError(
                f"{' '.join(words) or 'moebench tune'}: names no range; write one as in "
                "optim.lr=1e-4..1e-2"
            )
        for word in words:
            if word.startswith("seed="):
                raise ConfigError(
                    f"{word}: is not searched; tuning takes seeds from {FIRST_SEED} on, which are "
                    "never reported"
                )
        ends = [
            [interval.word(getattr(interval, end)) for interval in self.intervals]
            for end in ("low", "high")
        ]
        lowest, _ = (self._treatment(words, FIRST_SEED) for words in ends)
        corpus = prepare(lowest.config.data)
        told = [str(interval) for interval in self.intervals]
        text = json.dumps([told, seeds, run_hash(lowest, corpus.content_hash)])
        self.name = hashlib.sha256(text.encode()).hexdigest()[:10]

    def _treatment(self, chosen: Sequence[str], seed: int) -> Treatment:
        return Treatment.of(self._composer.compose([*self._fixed, *chosen, f"seed={seed}"]))

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.name}.journal"

    def run(self, trials: int, follow: Follow, command: str = "") -> Iterator[Outcome]:
        """Yield the trials that ended earlier, then train until there are `trials` in all.

        Raises:
            Stopped: on a signal, after a checkpoint; the same search then goes on.
            LockedError: if another process trains a run of the search.
            MoebenchError: if all trials failed.
        """
        optuna = self._optuna
        study, outcomes, left = self._known()
        yield from outcomes
        while len(outcomes) < trials:
            if left:  # it was interrupted, and has chosen its values
                number, words = left[0].number, left.pop(0).words.split()
                if not words:
                    study.tell(number, state=optuna.trial.TrialState.FAIL)
                    outcomes.append(Outcome(number, "", None, "was interrupted at its start"))
                    yield outcomes[-1]
                    continue
            else:
                trial = study.ask()
                words = [interval.ask(trial) for interval in self.intervals]
                number = trial.number
                trial.set_user_attr("words", " ".join(words))
            outcome = self._train(number, words, follow, command)
            failed = outcome.value is None
            study.tell(
                number,
                outcome.value,
                state=optuna.trial.TrialState.FAIL if failed else None,
            )
            outcomes.append(outcome)
            yield outcome
        if all(outcome.value is None for outcome in outcomes):
            raise MoebenchError(
                f"moebench tune: none of {len(outcomes)} trials could be trained; the last one: "
                f"{outcomes[-1].reason or 'see the lines above'}"
            )

    def _known(self) -> tuple[Any, list[Outcome], list[Outcome]]:
        """The study in the journal, its trials that have ended, and those that have not.

        Raises ConfigError for a journal that no search wrote, or that lies behind a link.
        """
        refuse_link(self.folder)
        try:
            make_folder(self.folder)
            _check_journal(self.journal)
            study, known = self._study(), ([], [])
            for trial in study.get_trials():
                ended, words = trial.state.is_finished(), trial.user_attrs.get("words", "")
                outcome = Outcome(trial.number, words, trial.value if ended else None)
                parts = words.split()
                if parts and not (
                    len(parts) == len(self.intervals)
                    and all(map(Interval.wrote, self.intervals, parts))
                    and (outcome.value is None or is_number(outcome.value))
                ):
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
        backend = storages.journal.JournalFileBackend(str(self.journal))
        storage = storages.JournalStorage(backend)
        known = len(storage.get_all_studies())
        study = self._optuna.create_study(
            study_name=self.name, storage=storage, direction="minimize", load_if_exists=True
        )
        made = len(study.get_trials()) if known else 0
        study.sampler = self._optuna.samplers.TPESampler(seed=made)
        return study

    def _train(self, number: int, words: Sequence[str], follow: Follow, command: str) -> Outcome:
        """Train the runs of a trial, those that are not done."""
        values = []
        try:
            for seed in self._seeds:
                treatment = self._treatment(words, seed)
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
        except (Stopped, LockedError):
            raise
        except MoebenchError as error:  # it diverged, or the values do not go together
            return Outcome(number, " ".join(words), None, str(error))
        return Outcome(number, " ".join(words), math.fsum(values) / len(values))


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


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of the lowest value; the first of equal ones."""
    known = [outcome for outcome in outcomes if outcome.value is not None]
    return min(known, key=lambda outcome: outcome.value or 0.0)


def _library() -> Any:
    try:
        library = importlib.import_module("optuna")
    except ImportError:
        raise ConfigError(
            "moebench tune: needs the Optuna library; run pip install 'moebench[tune]'"
        ) from None
    library.logging.set_verbosity(library.logging.ERROR)
    return library
