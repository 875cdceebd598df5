"""Searches on disk: what each looks for, and the trials that it has made.

A search is named by its ranges, its settings and its data. Beside its journal, which only Optuna
reads, `runs/tuning/<name>.json` holds the trials that ended, so that plans and reports need no
Optuna.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moebench.config.compose import Composer
from moebench.config.identity import run_hash
from moebench.config.interval import Interval
from moebench.config.treatment import Treatment
from moebench.contents import NUMBER, TEXT, each, fields, is_number, maybe, whole
from moebench.data.corpus import prepare
from moebench.disk import read_bytes, read_json, reason, write_json
from moebench.errors import ConfigError
from moebench.registration import TUNING

FOLDER = "tuning"
METRIC = "tune/nats"


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


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The outcome of the lowest value, the first of equal ones; None if all failed."""
    known = [outcome for outcome in outcomes if outcome.value is not None]
    return min(known, key=lambda outcome: outcome.value or 0.0, default=None)


@dataclass(frozen=True)
class Found:
    """A search as its file tells it.

    Attributes:
        trials: those that ended, in order.
        asked: the number that was asked for.
        journal: SHA-256 of its journal, as far as it tells of these trials; "" if there is none.
    """

    trials: tuple[Outcome, ...]
    asked: int
    journal: str


FILE = fields(
    {
        "trials": each(
            fields({"number": whole(), "words": TEXT, "value": maybe(NUMBER), "reason": TEXT})
        ),
        "asked": whole(),
        "bytes": whole(),
        "journal": TEXT,
    }
)


class Space:
    """What a search looks through: intervals, and the settings that all of its trials have.

    Args:
        composer: of configs.
        words: overrides, and at least one interval among them.
        seeds: of each trial.
        runs_dir: that holds the runs to report.

    Attributes:
        seeds: of each trial, from TUNING on.
        name: ten hexadecimal digits, which two searches share only if they are the same.

    Raises:
        ConfigError: for an invalid word, or a seed among them.
    """

    def __init__(
        self, composer: Composer, words: Sequence[str], seeds: int, runs_dir: Path
    ) -> None:
        read = {word: Interval.read(word) for word in words}
        self.intervals = [interval for interval in read.values() if interval is not None]
        self._composer, self._fixed = composer, [word for word in words if read[word] is None]
        self.ranges = tuple(word for word in words if read[word] is not None)
        self.seeds = range(TUNING, TUNING + seeds)
        self.folder = runs_dir / FOLDER
        if not self.intervals:
            raise ConfigError(
                f"{' '.join(words) or 'moebench tune'}: names no range; write one as in "
                "optim.lr=1e-4..1e-2"
            )
        for word in words:
            if word.startswith("seed="):
                raise ConfigError(
                    f"{word}: is not searched; tuning takes seeds from {TUNING} on, which are "
                    "never reported"
                )
        ends = [
            [interval.word(getattr(interval, end)) for interval in self.intervals]
            for end in ("low", "high")
        ]
        lowest, _ = (self.treatment(words, TUNING) for words in ends)
        corpus = prepare(lowest.config.data)
        told = [str(interval) for interval in self.intervals]
        text = json.dumps([told, seeds, run_hash(lowest, corpus.content_hash)])
        self.name = hashlib.sha256(text.encode()).hexdigest()[:10]

    def treatment(self, chosen: Sequence[str], seed: int) -> Treatment:
        """The run of a trial."""
        return Treatment.of(self._composer.compose([*self._fixed, *chosen, f"seed={seed}"]))

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.name}.journal"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"

    def made(self, trial: Outcome) -> bool:
        """Whether this search could have made a trial: a value for each range, a finite result."""
        parts = trial.words.split()
        return (
            len(parts) == len(self.intervals)
            and all(map(Interval.wrote, self.intervals, parts))
            and (trial.value is None or is_number(trial.value))
        )

    def write(self, trials: Sequence[Outcome], asked: int) -> None:
        """Write the trials that ended."""
        rows = [trial._asdict() for trial in trials]
        size, journal = self._digest()
        ranges, seeds = list(self.ranges), list(self.seeds)
        about = {"ranges": ranges, "settings": self._fixed, "seeds": seeds, "asked": asked}
        write_json(self.path, {**about, "trials": rows, "bytes": size, "journal": journal})

    def found(self) -> Found | None:
        """The trials that ended; None if none was made.

        Raises ConfigError for a file that is damaged, or that tells of another journal.
        """
        if not self.path.exists():
            return None
        try:
            content = read_json(self.path)
            if wrong := FILE(content, ""):
                raise ValueError(wrong)
            keys = Outcome._fields
            trials = tuple(Outcome(*(row[key] for key in keys)) for row in content["trials"])
            numbers: set[int] = set()
            for trial in trials:
                if trial.number in numbers:
                    raise ValueError(f"trial {trial.number} is there twice")
                numbers.add(trial.number)
                if not self.made(trial):
                    raise ValueError(f"trial {trial.number} is of no search of these ranges")
            size = content["bytes"]
            if self.journal.exists() and self._digest(size) != (size, content["journal"]):
                raise ValueError("the journal beside it has changed since")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path}: does not hold the trials of a search ({reason(error)}); the same "
                "moebench tune writes it again"
            ) from None
        return Found(trials, content["asked"], content["journal"])

    def _digest(self, size: int | None = None) -> tuple[int, str]:
        """Bytes and SHA-256 of the journal, or of its first `size` bytes: it grows at its end."""
        if not self.journal.exists():
            return 0, ""
        content = read_bytes(self.journal)[:size]
        return len(content), hashlib.sha256(content).hexdigest()
