"""The experts that a run selects, on disk: of every token at every step and evaluation.

`selections/train.npy` has an entry a step. `valid.npy` and `heldout.npy` have one an evaluation,
and `tune.npy` one, of the last. An entry is [layers, sequences, tokens, slots], one byte a slot
(two from 255 experts on); the largest number stands for an empty slot. The files are NumPy arrays
that grow: the header announces all entries from the start, so that `numpy.load` reads a whole file.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from moebench.disk import open_regular, open_to_append

FOLDER = "selections"
EMPTY = -1  # a slot without an expert
Ints = npt.NDArray[np.int32]


class Header(NamedTuple):
    """What a file announces.

    Attributes:
        shape: [entries, layers, sequences, tokens, slots].
        kind: of its numbers.
        begin: bytes before the first entry.
    """

    shape: tuple[int, ...]
    kind: np.dtype
    begin: int

    @property
    def entry_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.kind.itemsize


def path_of(run: Path, part: str) -> Path:
    """The file of a run with the selections of a part: `train`, `valid`, `heldout` or `tune`."""
    return run / FOLDER / f"{part}.npy"


def evaluation_steps(steps: int, every: int) -> list[int]:
    """The steps after which a run is evaluated: the first, the last, and every so many."""
    return sorted({0, steps, *(range(every, steps, every) if every else ())})


def entries_of(part: str, steps: int, every: int) -> list[int]:
    """The steps that the entries of a part belong to."""
    known = {"train": list(range(1, steps + 1)), "tune": [steps]}
    return known[part] if part in known else evaluation_steps(steps, every)


def append(run: Path, part: str, index: npt.NDArray, *, experts: int, entries: int) -> None:
    """Add an entry, which is on disk when this returns.

    Args:
        index: [layers, sequences, tokens, slots], EMPTY for a slot without an expert.
        experts: of a layer.
        entries: that the file will have.
    """
    kind = np.dtype("u1" if experts < 255 else "<u2")
    content = np.where(index < 0, np.iinfo(kind).max, index).astype(kind)
    path = path_of(run, part)
    path.parent.mkdir(exist_ok=True)
    with open_to_append(path) as file:
        if not file.tell():
            about = {"descr": kind.str, "fortran_order": False, "shape": (entries, *index.shape)}
            np.lib.format.write_array_header_1_0(file, about)
        file.write(content.tobytes())
        file.flush()
        os.fsync(file.fileno())


def cut(run: Path, kept: Mapping[str, int]) -> None:
    """Remove all entries of each part but the first ones, before a run continues.

    Args:
        kept: how many entries of each part remain.

    Raises ValueError if a part has fewer.
    """
    for part, number in kept.items():
        path = path_of(run, part)
        if not number:
            path.unlink(missing_ok=True)
            continue
        try:
            with open_regular(path) as file:
                header = _header(file)
        except (OSError, ValueError):
            raise ValueError(f"{FOLDER}/{path.name} is missing or broken") from None
        end = header.begin + number * header.entry_bytes
        if path.stat().st_size < end:
            raise ValueError(f"{FOLDER}/{path.name} lacks entries")
        os.truncate(path, end)


def read_header(run: Path, part: str) -> Header:
    """What a whole file announces. Raises OSError or ValueError for any other file."""
    with open_regular(path_of(run, part)) as file:
        header, size = _header(file), os.fstat(file.fileno()).st_size
    if size != header.begin + header.shape[0] * header.entry_bytes:
        raise ValueError("is not whole")
    return header


def read_entry(run: Path, part: str, number: int, *, experts: int) -> Ints:
    """[layers, sequences, tokens, slots] an entry, EMPTY for a slot without an expert.

    Raises OSError or ValueError for a file that is not whole, or has experts beyond these.
    """
    with open_regular(path_of(run, part)) as file:
        header = _header(file)
        file.seek(header.begin + number * header.entry_bytes)
        content = np.frombuffer(file.read(header.entry_bytes), header.kind)
    index = content.reshape(header.shape[1:]).astype(np.int32)
    index = np.where(index == np.iinfo(header.kind).max, EMPTY, index)
    if index.max(initial=EMPTY) >= experts:
        raise ValueError(f"has experts beyond the {experts} of a layer")
    return index


def _header(file: IO[bytes]) -> Header:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("is of another version")
    shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    if fortran or len(shape) != 5 or kind not in (np.dtype("u1"), np.dtype("<u2")):
        raise ValueError("holds no selections")
    return Header(shape, kind, file.tell())
