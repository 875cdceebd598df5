"""Expert counts that any trainer logged: an .npz or Parquet file, read bounded and checked.

docs/inspecting.md has the schema. A row is a micro-batch, or the part of one that is of a domain.
"""

import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moebench.contents import read_arrays
from moebench.disk import MAX_BYTES, open_regular, read_bytes, reason, regular_status
from moebench.errors import DataError, nearest
from moebench.records import printable

Ints = npt.NDArray[np.int64]

ARRAYS = {
    "counts": "int rows layers experts",
    "step": "int rows",
    "micro_batch": "int rows",
    "domain": "text rows",
}
COLUMNS = ("micro_batch", "layer", "expert", "count")  # a Parquet file must have
OTHERS = ("step", "domain")  # it may have
MOST = 2**25  # counts of a file, and rows of a Parquet file
MOST_EXPERTS = 2**12  # of a layer
MOST_DOMAINS = 2**8
MOST_MEMBERS = 2**26  # rows times domains, of which a matrix is made
LARGEST = 2**40  # a count; sums stay exact
SLICE = 2**16  # rows of a Parquet file at a time
MOST_TABLE_BYTES = 2**20  # of a table of costs


@dataclass(frozen=True)
class Counts:
    """Assignments by step, micro-batch, domain, layer and expert.

    Attributes:
        counts: [rows, layers, experts] of whole numbers, at least 0; rows are in order of step,
            micro-batch and domain.
        step, micro_batch: [rows]; both name a micro-batch.
        domain: [rows] indices of `domains`.
        domains: names; a single empty one if the file names none.
        layers: their names in the file.
    """

    counts: Ints
    step: Ints
    micro_batch: Ints
    domain: Ints
    domains: list[str]
    layers: list[str]

    def by_micro_batch(self) -> tuple[Ints, Ints, Ints]:
        """[micro_batches, layers, experts] counts, their steps, and their domains.

        The domain of a micro-batch of several domains is -1.
        """
        new = (np.diff(self.step) != 0) | (np.diff(self.micro_batch) != 0)
        first = np.flatnonzero(np.concatenate([[True], new]))
        rows = np.diff(np.append(first, len(self.step)))
        domain = np.where(rows == 1, self.domain[first], -1)
        return np.add.reduceat(self.counts, first), self.step[first], domain


def read_counts(path: Path, top_k: int) -> Counts:
    """Read a file of counts and check that tokens with `top_k` experts each can have made them.

    Raises DataError with what is wrong, and what to do.
    """
    where = f"--counts={path}"
    try:
        regular_status(path)
        made = _from_parquet(path) if path.suffix.lower() == ".parquet" else _from_npz(path)
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{where}: cannot be used ({reason(error)}); see docs/inspecting.md") from (
            None
        )
    if len(made.domains) > MOST_DOMAINS or len(made.domains) * len(made.step) > MOST_MEMBERS:
        raise DataError(
            f"{where}: has {len(made.domains)} domains in {len(made.step)} rows; name fewer, at "
            f"most {MOST_DOMAINS}"
        )
    _check(made, where, top_k)
    return made


def _from_npz(path: Path) -> Counts:
    arrays = read_arrays(path, ARRAYS, "counts")
    with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
        _check_names([name.removesuffix(".npy") for name in archive.namelist()], ARRAYS)
    rows, layers, experts = arrays["counts"].shape
    _check_size(rows, layers, experts)
    arrays = {
        "step": np.zeros(rows, np.int64),
        "micro_batch": np.arange(rows),
        "domain": np.zeros(rows, "U1"),
        **arrays,
    }
    names, domain = np.unique(arrays["domain"], return_inverse=True)
    step, micro_batch = (_whole(arrays[name], name) for name in ("step", "micro_batch"))
    order = np.lexsort((domain, micro_batch, step))
    counts, step, micro_batch, domain = (
        part[order] for part in (_whole(arrays["counts"], "counts"), step, micro_batch, domain)
    )
    keys = np.stack([step, micro_batch, domain])
    if rows > 1 and (np.diff(keys) == 0).all(0).any():
        raise ValueError("has two rows of one step, micro_batch and domain")
    layer_names = [str(layer) for layer in range(layers)]
    return Counts(counts, step, micro_batch, domain, names.tolist(), layer_names)


def _check_names(names: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError for a name that is nearly one that could be there, and is not."""
    absent = [name for name in known if name not in {*names}]
    for name in names:
        if name not in known and (near := nearest(name, absent)):
            raise ValueError(f"has {printable(name)}, which is not read; call it {near[0]}")


def _from_parquet(path: Path) -> Counts:
    """Rows of single counts; what is missing is 0, and two rows of one place are refused."""
    parts = list(_slices(path))
    if not parts:
        raise ValueError("has no rows")
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole = {name: _whole(table[name], name) for name in table if name != "domain"}
    number = len(whole["count"])
    domains, domain = np.unique(table.get("domain", np.zeros(number, "U1")), return_inverse=True)
    step = whole.get("step", np.zeros(number, np.int64))
    keys = np.stack([step, whole["micro_batch"], domain])
    rows, row = np.unique(keys, axis=1, return_inverse=True)
    layers, layer = np.unique(whole["layer"], return_inverse=True)
    experts = int(whole["expert"].max()) + 1
    _check_size(rows.shape[1], len(layers), experts)
    place = (row.ravel() * len(layers) + layer) * experts + whole["expert"]
    if len(np.unique(place)) < number:
        raise ValueError("has two rows of one step, micro_batch, domain, layer and expert")
    counts = np.zeros(rows.shape[1] * len(layers) * experts, np.int64)
    counts[place] = whole["count"]
    counts = counts.reshape(rows.shape[1], len(layers), experts)
    step, micro_batch, domain = rows
    names = [str(name) for name in layers]
    return Counts(counts, step, micro_batch, domain, domains.tolist(), names)


def _slices(path: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The columns of a Parquet file that are used, some rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with open_regular(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            missing = [name for name in COLUMNS if name not in names]
            if missing:
                raise ValueError(f"lacks the column {missing[0]}")
            _check_names(names, (*COLUMNS, *OTHERS))
            if file.metadata.num_rows > MOST:
                raise ValueError(f"has more than {MOST:,} rows")
            groups = [file.metadata.row_group(at) for at in range(file.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > 4 * MAX_BYTES:
                raise ValueError(f"unpacks to more than {4 * MAX_BYTES >> 20} MiB")
            wanted = [name for name in (*COLUMNS, *OTHERS) if name in names]
            for batch in file.iter_batches(SLICE, columns=wanted):
                yield {name: _column(batch.column(name), name) for name in wanted}
    except pyarrow.ArrowException as error:
        raise ValueError(f"is no sound Parquet: {reason(error)}") from None


def _column(values: Any, name: str) -> npt.NDArray[Any]:
    """A column as an array of whole numbers, or of texts."""
    import pyarrow

    kind = values.type
    if pyarrow.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    fits = text if name == "domain" else pyarrow.types.is_integer(kind)
    if not fits:
        wanted = "text" if name == "domain" else "whole numbers"
        raise ValueError(f"has a column {name} of {kind}, not of {wanted}")
    if values.null_count:
        raise ValueError(f"has an empty place in the column {name}")
    return np.array(values.to_pylist(), "U") if text else values.to_numpy(zero_copy_only=False)


def _whole(values: npt.NDArray[Any], name: str) -> Ints:
    if values.size and (values.min() < 0 or values.max() > LARGEST):
        raise ValueError(f"has a number in {name} that is not from 0 to {LARGEST}")
    return values.astype(np.int64)


def _check_size(rows: int, layers: int, experts: int) -> None:
    if not rows * layers:
        raise ValueError("has no counts")
    if not 2 <= experts <= MOST_EXPERTS:
        raise ValueError(f"has {experts} experts, which must be from 2 to {MOST_EXPERTS}")
    if rows * layers * experts > MOST:
        raise ValueError(f"has more than {MOST:,} places for counts; log fewer steps")


def _check(made: Counts, where: str, top_k: int) -> None:
    """Raise an error unless whole tokens can have made each row."""
    most, total = made.counts.max(2), made.counts.sum(2)
    if top_k > made.counts.shape[2]:
        raise DataError(f"--top-k={top_k}: must be at most the {made.counts.shape[2]} experts")
    for wrong, what in (
        (total < top_k, f"less than a token of --top-k={top_k}; write counts for every layer"),
        (
            most * top_k > total,
            f"an expert with more counts than tokens; is --top-k={top_k} right?",
        ),
    ):
        if wrong.any():
            row, layer = (int(index[0]) for index in np.nonzero(wrong))
            raise DataError(
                f"{where}: step {made.step[row]}, micro-batch {made.micro_batch[row]} has in layer "
                f"{made.layers[layer]} {what}"
            )


def read_costs(path: Path) -> tuple[list[float], list[float]]:
    """Tokens a rank, ascending, and their milliseconds, from a CSV file with these two columns.

    Raises DataError with what is wrong, and what to do.
    """
    where = f"--cost={path}"
    try:
        lines = read_bytes(path, MOST_TABLE_BYTES).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({reason(error)})") from None
    if [name.strip() for name in lines[0].split(",")] != ["tokens", "ms"]:
        raise DataError(f"{where}: must begin with the line tokens,ms")
    made: list[tuple[float, float]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            tokens, ms = map(float, line.split(","))
        except ValueError:
            tokens = ms = float("nan")
        if not (0 <= tokens < LARGEST and 0 < ms < LARGEST):
            raise DataError(f"{where}: line {number} is not a number of tokens and its time in ms")
        if made and tokens <= made[-1][0]:
            raise DataError(f"{where}: line {number} has no more tokens than the one before")
        made.append((tokens, ms))
    if len(made) < 2:
        raise DataError(f"{where}: has {len(made)} lines of numbers; measure at least two")
    return [tokens for tokens, _ in made], [ms for _, ms in made]
