"""Cache of finished records: two Parquet files for each folder of runs.

A record is read and checked against its seal when the size, modification time or inode of one of
its files is not what the cache knows; otherwise its values come from the cache. Unfinished runs are
read every time. The files lie in moebench's cache folder (`disk.cache_root`). They can be deleted
at any time, and nothing is cached where they cannot be written.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from moebench.contents import is_number
from moebench.disk import cache_root, read_bytes, write_bytes
from moebench.errors import RecordError
from moebench.records import Record

FORMAT = 3  # raised when the same record would be cached differently
KNOWN = b"moebench.known"  # metadata of a Parquet file: format and stamps, as JSON


def read_rows(
    root: Path, records: Sequence[Record], read: Callable[[Record], dict[str, Any]]
) -> tuple[list[tuple[Record, dict[str, Any]]], list[tuple[Record, str]]]:
    """The row that `read` makes of each record, from the cache where a finished one is unchanged.

    Args:
        root: the folder that the records lie in, which decides where they are cached.
        records: to read.
        read: makes a row of JSON values; raises RecordError.

    Returns:
        The records with their rows, and those that cannot be read, with the reason.
    """
    path = _path(root, "runs")
    old = _texts(path)
    rows, failed, fresh = [], [], {}
    for record in records:
        stamp = _stamp(record, "summary.json", "manifest.json")
        key = record.name
        if stamp and (known := old.get(key)) and known[0] == stamp:
            rows.append((record, json.loads(known[1])))
            continue
        try:
            row = read(record)
        except RecordError as error:
            failed.append((record, str(error)))
            continue
        rows.append((record, row))
        if stamp:
            fresh[key] = stamp, json.dumps(row)
    if fresh:
        _write_texts(path, old | fresh)
    return rows, failed


def read_curves(
    root: Path, records: Sequence[Record], metrics: Sequence[str] | None = None
) -> tuple[pa.Table, list[tuple[Record, str]]]:
    """The metrics of some records at each logged step.

    Args:
        root: the folder that the records lie in.
        records: to read.
        metrics: the columns to return; None returns all.

    Returns:
        A table of `run`, `step` and a column a metric, null where a step has no value; and the
        records whose metrics cannot be read, with the reason.
    """
    path = _path(root, "curves")
    known = _known(path)
    stamps = {record.name: _stamp(record, "metrics.jsonl") for record in records}
    stale = [r for r in records if not known.get(r.name) or known[r.name] != stamps[r.name]]
    failed: list[tuple[Record, str]] = []
    fresh: dict[str, pa.Table] = {}
    for record in stale:
        try:
            fresh[record.name] = _curve(record)
        except RecordError as error:
            failed.append((record, str(error)))
    names = [r.name for r in records]
    sealed = {r.name for r in stale if r.name in fresh and r.is_done() and stamps[r.name]}
    if sealed:
        rest = [name for name in known if name not in fresh]
        table = _join([_stored(path, rest, None), *(fresh[name] for name in sealed)])
        _write(path, table, {name: known[name] for name in rest} | {n: stamps[n] for n in sealed})
    wanted = [name for name in names if name not in fresh and name in known]
    parts = [_stored(path, wanted, metrics), *(_columns(fresh[n], metrics) for n in fresh)]
    return _join(parts), failed


def _curve(record: Record) -> pa.Table:
    """A record's `run`, `step` and metrics, checked against its seal if it is done."""
    path = record.path / "metrics.jsonl"
    if record.is_done():
        record.check_seal("metrics.jsonl")
    table = _quickly(path)
    if table is None:  # read line by line, so that an error names the line
        rows = [{k: v for k, v in row.items() if is_number(v)} for row in record.rows()]
        keys = dict.fromkeys(key for row in rows for key in row)
        columns = {key: pa.array([_float(row.get(key)) for row in rows]) for key in keys}
        table = pa.table(columns or {"step": pa.array([], pa.float64())})
    number = pa.field("step", pa.float64())
    kept = {number.name: table["step"].cast(pa.float64())}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if name != "step" and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            kept[name] = table[name].cast(pa.float64(), safe=False)
    names = pa.array([record.name] * table.num_rows, pa.string()).dictionary_encode()
    return pa.table({"run": names, **kept})


def _quickly(path: Path) -> pa.Table | None:
    """Parse all lines at once; None where a line is odd, which the slower reader must judge."""
    try:
        whole, line, _torn = read_bytes(path).rpartition(b"\n")
        if not whole:
            return None
        options = pj.ReadOptions(use_threads=False, block_size=len(whole) + 2)
        table = pj.read_json(pa.BufferReader(whole + line), read_options=options)
    except (OSError, ValueError, pa.ArrowException):
        return None
    odd = "step" not in table.column_names or not pa.types.is_integer(table["step"].type)
    return None if odd or table["step"].null_count else table


def _path(root: Path, name: str) -> Path:
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return cache_root() / f"report-{digest}" / f"{name}.parquet"


def _stamp(record: Record, *names: str) -> str:
    """Size, time and inode of some files of a finished record; "" for an unfinished one."""
    try:
        states = [(record.path / name).stat() for name in ("summary.json", *names)]
    except OSError:
        return ""
    return " ".join(f"{state.st_size}:{state.st_mtime_ns}:{state.st_ino}" for state in states)


def _known(path: Path) -> dict[str, str]:
    """The stamps in a Parquet file; none if it is missing, broken or of another format."""
    try:
        content = json.loads(pq.read_schema(path).metadata[KNOWN])
        return dict(content["stamps"]) if content["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return {}


def _stored(path: Path, names: Sequence[str], metrics: Sequence[str] | None) -> pa.Table:
    if not names:
        return _join([])
    columns = None
    if metrics is not None:
        known = pq.read_schema(path).names
        columns = [name for name in ("run", "step", *metrics) if name in known]
    table = pq.read_table(path, columns=columns).replace_schema_metadata(None)
    codes = table["run"].combine_chunks()
    wanted = set(names)
    if wanted >= set(codes.dictionary.to_pylist()):
        return table
    return table.filter(
        pc.call_function(
            "is_in", [codes.dictionary_decode()], pc.SetLookupOptions(pa.array(list(wanted)))
        )
    )


def _columns(table: pa.Table, metrics: Sequence[str] | None) -> pa.Table:
    if metrics is None:
        return table
    return table.select([name for name in ("run", "step", *metrics) if name in table.column_names])


def _join(tables: Sequence[pa.Table]) -> pa.Table:
    run = pa.field("run", pa.dictionary(pa.int32(), pa.string()))
    empty = pa.schema([run, pa.field("step", pa.float64())]).empty_table()
    joined = pa.concat_tables([empty, *tables], promote_options="default")
    return joined.unify_dictionaries().combine_chunks()


def _write(path: Path, table: pa.Table, stamps: Mapping[str, str]) -> None:
    metadata = {KNOWN: json.dumps({"format": FORMAT, "stamps": dict(stamps)}).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="lz4")
    with suppress(OSError):
        write_bytes(path, sink.getvalue().to_pybytes())


def _texts(path: Path) -> dict[str, tuple[str, str]]:
    stamps = _known(path)
    if not stamps:
        return {}
    table = pq.read_table(path)
    texts = zip(table["run"].to_pylist(), table["text"].to_pylist(), strict=True)
    return {run: (stamps[run], text) for run, text in texts if run in stamps}


def _write_texts(path: Path, rows: Mapping[str, tuple[str, str]]) -> None:
    table = pa.table({"run": list(rows), "text": [text for _, text in rows.values()]})
    _write(path, table, {run: stamp for run, (stamp, _) in rows.items()})


def _float(value: Any) -> float | None:
    return float(value) if value is not None and abs(value) < 1e308 else None
