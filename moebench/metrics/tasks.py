"""Tasks by likelihood: minimal pairs and cloze, with accuracies and their intervals.

The answer of a language model is the text that it finds most likely. Scores are log-probabilities
of whole texts; nothing here runs a model.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moebench.data.draws import permutation
from moebench.disk import read_bytes, read_unpacked, reason
from moebench.errors import DataError

Z = 1.959963984540054  # of a 95 % interval


class Accuracy(NamedTuple):
    """A share of right answers, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    n: int
    chance: float


def accuracy(right: npt.ArrayLike, chance: float) -> Accuracy:
    """Accuracy over independent questions; a tie counts as the share that guessing would win.

    Args:
        right: [questions] 1, 0, or a share where answers tie.
    """
    right = np.asarray(right, np.float64)
    number, share = len(right), float(right.mean())
    middle = (share + Z**2 / (2 * number)) / (1 + Z**2 / number)
    spread = share * (1 - share) / number + Z**2 / (4 * number**2)
    half = Z * math.sqrt(spread) / (1 + Z**2 / number)
    return Accuracy(share, max(0.0, middle - half), min(1.0, middle + half), number, chance)


def won(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[questions] whether the first of each question's candidates has the highest score.

    Args:
        scores: [questions, candidates].
    """
    scores = np.asarray(scores, np.float64)
    best = scores == scores.max(1, keepdims=True)
    return best[:, 0] / best.sum(1)


def by_group(
    right: npt.ArrayLike, groups: Sequence[str], chance: float
) -> dict[str, dict[str, Any]]:
    """The accuracy of each group of questions, by name in order."""
    right, names = np.asarray(right), np.asarray(groups)
    return {
        str(name): accuracy(right[names == name], chance)._asdict() for name in np.unique(names)
    }


class Pair(NamedTuple):
    """A BLiMP item: two sentences, of which a speaker of the language accepts the first alone."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str


class Question(NamedTuple):
    """A cloze item: after the same context, the true continuation first and then distractors."""

    context: npt.NDArray[np.int64]
    candidates: list[npt.NDArray[np.int64]]
    domain: str


def cloze(
    streams: Iterable[tuple[str, npt.NDArray[np.integer[Any]]]],
    *,
    end: int,
    questions: int,
    context: int,
    length: int,
    candidates: int = 4,
    seed: int = 0,
) -> list[Question]:
    """Questions from any validation text: which of some passages of the domain comes next?

    Places are drawn without replacement from a grid of passages of `length` tokens, so true
    continuations do not overlap. Distractors are other passages of the grid. No passage contains
    the end of a document, and no distractor equals the true passage. A domain with too few places
    gets fewer questions.

    Args:
        streams: of each domain, its name and tokens.
        end: the token that ends a document.
        questions: of each domain, at most.
        context, length: in tokens, of the context and of each candidate.
        seed: the draws of a domain depend on it and the domain's name alone.
    """
    made = []
    for name, stream in streams:
        tokens = np.asarray(stream, np.int64)
        starts = np.arange(context, len(tokens) - length + 1, length)
        stretches = tokens[starts[:, None] + np.arange(length)]
        whole = ~(stretches == end).any(1)
        starts, stretches = starts[whole], stretches[whole]
        for place in permutation(len(starts), seed, "cloze", name)[:questions]:
            others = permutation(len(starts), seed, "cloze", name, int(place))
            wrong = others[(stretches[others] != stretches[place]).any(1)][: candidates - 1]
            if len(wrong) == candidates - 1:
                before = tokens[starts[place] - context : starts[place]]
                made.append(Question(before, [stretches[at] for at in (place, *wrong)], name))
    return made


def read_blimp(folder: Path, limit: int | None = None) -> tuple[list[Pair], str]:
    """The pairs of a folder of BLiMP's files, and a hash of the files.

    Args:
        limit: pairs from the start of each file; None for all.

    Raises DataError for a folder without files, or a file that holds anything but pairs.
    """
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if not files:
        raise DataError(
            f"--blimp={folder}: holds no *.jsonl or *.jsonl.gz; name the folder of BLiMP's data"
        )
    digest, pairs = hashlib.sha256(), []
    for path in files:
        try:
            digest.update(path.name.encode() + read_bytes(path))
            lines = read_unpacked(path).decode().splitlines()[:limit]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({reason(error)}); is it whole?") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                keys = ("sentence_good", "sentence_bad", "UID", "linguistics_term")
                pairs.append(Pair(*(str(row[key]) for key in keys)))
            except (ValueError, LookupError, TypeError):
                raise DataError(
                    f"{path}:{number}: is not a pair of BLiMP, with sentence_good, sentence_bad, "
                    "UID and linguistics_term"
                ) from None
    if not pairs:
        raise DataError(f"--blimp={folder}: its files hold no pairs")
    return pairs, digest.hexdigest()
