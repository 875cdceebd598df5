"""Records become a tidy frame: a row a run, a row a run and metric, and what could not be read."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moebench.catalogue import SETTLED, taken
from moebench.errors import ConfigError, RecordError
from moebench.plans import PRIMARY
from moebench.records import SEE, Record, find_records, printable
from moebench.report.read.conditions import check_key, condition
from moebench.report.read.grouping import make_labels_unique, number_tables
from moebench.report.read.row_cache import read_curves, read_rows
from moebench.report.read.run import SCOPES, read_run

KEYS = ("run", "arm", "arm_hash", "seed", "table")  # of a row of metrics
_OF_MACHINE = ("speed/", "memory/")  # metrics in which two copies of a run may differ
_FILES = ("manifest.json", "status.json", "summary.json", "metrics.jsonl")


class Problem(NamedTuple):
    """A record, or a part of one, that the report leaves out, and why."""

    run: str
    reason: str

    def __str__(self) -> str:
        return f"{self.run}: {self.reason}"


@dataclass(frozen=True)
class Frame:
    """The contents of some records.

    Attributes:
        runs: one row a run: `run` (directory name), `arm` (a label, unique within its table),
            `arm_hash`, `seed`, `state`, `reason`, `step`, `steps`, `table` (an index of `tables`),
            `tokens` (seen by a finished run), `sequences` and `group_tokens` (size of the balance
            group), `trigram_bits` (bits a byte of a byte trigram of the text), `random_micro`,
            `random_batch`, `random_global` (MaxVio of random routing),
            `science` (every key that can change a result and does not have its neutral value),
            `domains`, `first_sequences` (a hash of the sequences of step 1 in any order),
            `made_with` (versions, device, commit), `end` and `path`. Missing numbers are NaN.
        metrics: one row a finished run and metric: `run`, `arm`, `arm_hash`, `seed`, `table`,
            `metric`, `value`.
        tables: of each table, the keys in which its runs are equal, with their values.
        problems: what was left out.
        damaged: files of finished runs that are not read here and were changed, as a quick look
            finds; `Record.seen_damage`.
        unsound: runs whose curves are left out; see `checked`.
        step: at which the metrics are taken; None for the end. `tokens` are then those up to it.
        starts: `valid/nats` before the first step, by run; empty before `checked`.
        learning: steps and `valid/nats` of the evaluations, by run; empty before `checked`.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    tables: tuple[dict[str, Any], ...]
    problems: tuple[Problem, ...]
    damaged: tuple[Problem, ...] = ()
    unsound: frozenset[str] = frozenset()
    step: int | None = None
    starts: Mapping[str, float] = field(default_factory=dict)
    learning: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)

    def curves(
        self, metrics: Sequence[str] | None = None, *, unfinished: bool = False
    ) -> pd.DataFrame:
        """The metrics of the finished runs at their logged steps, one row a run and step.

        Columns are `run`, `arm`, `seed`, `table`, `step` and the metrics, NaN where a step has no
        value.

        Args:
            metrics: the metrics to read; None reads all.
            unfinished: whether to read the steps so far of the other runs, too.

        Raises:
            RecordError: if a run's metrics are damaged, and `checked` did not leave them out.
        """
        curves, problems = self._curves(metrics, unfinished)
        if problems:
            raise RecordError(str(problems[0]))
        return curves

    def checked(self) -> "Frame":
        """The frame without damaged or changed curves; these become problems."""
        curves, problems = self._curves([PRIMARY], unfinished=True)
        learning: dict[str, list[tuple[int, float]]] = {}
        for run, step, nats in zip(
            curves["run"], curves["step"], curves.get(PRIMARY, []), strict=False
        ):
            if nats == nats:
                learning.setdefault(run, []).append((int(step), float(nats)))
        starts = {run: nats for run, ((step, nats), *_) in learning.items() if step == 0}
        left_out = [Problem(run, f"{reason}; its curves are left out") for run, reason in problems]
        return replace(
            self,
            problems=(*self.problems, *left_out),
            unsound=self.unsound | {problem.run for problem in problems},
            starts=starts,
            learning=learning,
        )

    def _curves(self, metrics: Sequence[str] | None, unfinished: bool) -> tuple[Any, list[Problem]]:
        rows = [
            row
            for row in self.rows()
            if row["run"] not in self.unsound
            and (row["state"] == "done" or (unfinished and _has_rows(row)))
        ]
        folders: dict[Path, list[Record]] = {}
        for row in rows:
            folders.setdefault(row["path"].parent, []).append(Record(row["path"]))
        problems, parts = [], [pd.DataFrame({"run": pd.Series(dtype=str), "step": []})]
        for folder, records in folders.items():
            table, failed = read_curves(folder, records, metrics)
            problems += [_problem(record, reason) for record, reason in failed]
            parts.append(table.to_pandas())
        curves: Any = pd.concat(parts[1:]) if len(parts) > 1 else parts[0]
        names: Any = curves["run"].astype("category").cat.remove_unused_categories()
        names = names.cat.rename_categories([printable(str(n)) for n in names.cat.categories])
        curves["run"] = names
        for key in ("arm", "seed", "table"):
            of_run = {row["run"]: row[key] for row in rows}
            values = pd.Series([of_run[name] for name in names.cat.categories], dtype=object)
            curves[key] = values.take(names.cat.codes.to_numpy()).to_numpy()
            curves[key] = curves[key].astype("category" if key == "arm" else int)
        return curves.reset_index(drop=True), problems

    def learning_until(self, step: int | None) -> dict[str, list[tuple[int, float]]]:
        """The evaluations up to a step; None for all of them."""
        return {
            run: [pair for pair in curve if step is None or pair[0] <= step]
            for run, curve in self.learning.items()
        }

    def at(self, step: int) -> "Frame":
        """The frame with the metrics of a step at which finished runs were evaluated.

        As in a summary, a metric of every step is its mean over the last tenth of the steps so
        far. Runs that were not evaluated at that step have no metrics.

        Raises:
            ConfigError: if no finished run was evaluated at that step.
        """
        curves: Any = self.curves()
        evaluated = curves[curves[PRIMARY].notna()] if PRIMARY in curves else curves[:0]
        known = sorted(map(int, set(evaluated["step"])))
        if step not in known:
            choices = ", ".join(map(str, known)) or "none"
            raise ConfigError(
                f"--at {step}: no finished run was evaluated there; choose one of {choices}"
            )
        return self._at(step, curves, {*evaluated[evaluated["step"] == step]["run"]})

    def of(self, runs: Collection[str], step: int) -> "Frame":
        """The frame with the metrics of some runs alone, finished or not, at a step.

        Args:
            runs: names; they were evaluated at that step.
            step: as `at` takes it. Where it is the end of them all, their summaries are taken.
        """
        chosen = [row for row in self.rows() if row["run"] in runs]
        if all((row["state"], row["steps"]) == ("done", step) for row in chosen):
            return replace(self, metrics=self.metrics[self.metrics["run"].isin(list(runs))])
        return self._at(step, self.curves(unfinished=True), runs)

    def _at(self, step: int, curves: Any, runs: Collection[str]) -> "Frame":
        curves = curves[curves["run"].isin(list(runs)) & (curves["step"] <= step)]
        names = [name for name in curves.columns if name not in (*KEYS, "step")]
        last = [name for name in names if taken(name) == "last"]
        late = curves[curves["step"] > step * (1 - SETTLED)] if step else curves
        means = late.groupby("run", observed=True)[[n for n in names if n not in last]].mean()
        values = pd.concat([curves[curves["step"] == step].set_index("run")[last], means], axis=1)
        rows = {row["run"]: row for row in self.rows()}
        metrics = [
            {**{key: rows[run][key] for key in KEYS}, "metric": name, "value": value}
            for run, of_run in values.to_dict("index").items()
            for name, value in of_run.items()
            if value == value
        ]
        table = pd.DataFrame(metrics, columns=[*KEYS, "metric", "value"])
        sizes = ("global_bsz", "seq_len")
        seen = [
            step * math.prod(row["science"].get(key, math.nan) for key in sizes)
            for row in rows.values()
        ]
        return replace(self, runs=self.runs.assign(tokens=seen), metrics=table, step=step)

    def overview(self) -> pd.DataFrame:
        """One row an arm of a table: its numbers of runs by state, its seeds, its mean nats."""
        keys = ["table", "arm"]
        runs: Any = self.runs
        metrics: Any = self.metrics
        arms = runs.groupby(keys, dropna=False, observed=True)
        states = arms["state"].value_counts().unstack(fill_value=0)
        seeds = arms["seed"].agg(lambda seeds: ", ".join(str(int(seed)) for seed in sorted(seeds)))
        nats = metrics[metrics["metric"] == PRIMARY].groupby(keys)["value"].mean()
        return states.join(seeds.rename("seeds")).join(nats.rename(PRIMARY)).reset_index()

    def _repr_html_(self) -> str:
        """What a notebook shows: the arms, and how much was left out."""
        table = self.overview().to_html(index=False, float_format="{:.4f}".format, na_rep="")
        left = len(self.problems) + len(self.damaged)
        return table + (
            f"<p>{left} left out or damaged; see .problems and .damaged</p>" * bool(left)
        )

    def rows(self) -> list[dict[str, Any]]:
        """The runs as dictionaries."""
        return [{str(k): v for k, v in row.items()} for row in self.runs.to_dict("records")]


def load(
    roots: Path | str | Sequence[Path | str],
    only: Collection[str] | None = None,
    *,
    where: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Frame:
    """Read records.

    Args:
        roots: directories of runs, or runs.
        only: names of the run directories to read; None reads all.
        where: conditions `key=value` or `key=value,value` that the runs must meet: keys of the
            config, `arm` (with * and ?) and `seed`.
        by: keys in which runs of one table are equal, too.

    Raises:
        RecordError: if a directory holds no record at all.
        ConfigError: if a condition is malformed, or names no key.
    """
    roots = [Path(roots)] if isinstance(roots, Path | str) else [Path(root) for root in roots]
    conditions = list(map(condition, where))
    for key in by:
        check_key(key, "--by")
    problems, rows = [], []
    for root in dict.fromkeys(roots):
        read, failed = _read(root, only)
        rows += read
        problems += failed
    rows = [row for row in rows if all(met(row) for met in conditions)]
    rows, twins = _distinct(rows)
    problems += [*twins, *(problem for row in rows for problem in _missing_values(row))]
    tables = number_tables(rows, by)
    make_labels_unique(rows)
    metrics = [
        {**{key: row[key] for key in KEYS}, "metric": name, "value": value}
        for row in rows
        for name, value in row["metrics"].items()
        if value is not None
    ]
    return Frame(
        runs=pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_NUMBERS, float)),
        metrics=pd.DataFrame(metrics, columns=[*KEYS, "metric", "value"]),
        tables=tables,
        problems=tuple(problems),
        damaged=tuple(problem for row in rows for problem in _seen_damage(row)),
    )


_NUMBERS = (
    *("step", "steps", "tokens", "sequences", "group_tokens", "trigram_bits"),
    *(f"random_{scope}" for scope in SCOPES),
)
_COLUMNS = [
    *("run", "arm", "arm_hash", "seed", "state", "reason", "table", *_NUMBERS),
    *("science", "domains", "first_sequences", "made_with", "end", "path"),
]


def _read(root: Path, only: Collection[str] | None) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The runs of one directory, and its records that cannot be read."""
    records, problems = find_records(root), _without_config(root)
    if not records and not problems:
        raise RecordError(f"{root}: {_why_empty(root)}")
    if only is not None:
        records = [record for record in records if record.name in only]
        problems = [problem for problem in problems if problem.run in only]
    folder = root.parent if Record(root).exists() else root
    read, failed = read_rows(folder, records, read_run)
    problems += [_problem(record, printable(reason)) for record, reason in failed]
    return [row | {"path": record.path} for record, row in read], problems


def _has_rows(row: Mapping[str, Any]) -> bool:
    """Whether a run has logged anything; one that has just begun has not."""
    return (row["path"] / "metrics.jsonl").is_file()


def _without_config(root: Path) -> list[Problem]:
    """Directories with files of a record but without the `config.yaml` that marks one."""
    if Record(root).exists() or not root.is_dir():
        return []
    return [
        Problem(printable(path.name), "config.yaml: is missing")
        for path in sorted(root.iterdir())
        if not (path / "config.yaml").is_file() and any((path / name).is_file() for name in _FILES)
    ]


def _why_empty(root: Path) -> str:
    if not root.is_dir():
        return "is not a directory; name one with runs, or make some with moebench sweep"
    return "holds no runs; make some with moebench sweep"


def _problem(record: Record, reason: str) -> Problem:
    """A problem of a record; the reason loses the path at its start."""
    reason = reason.replace(f"{record.path}/", "").replace(f"{record.path}: ", "")
    return Problem(printable(record.name), reason)


def _seen_damage(row: Mapping[str, Any]) -> Iterable[Problem]:
    """A line on the files of a finished run that were changed or lost, though no number is read."""
    lines = Record(row["path"]).seen_damage() if row["state"] == "done" else []
    if lines:
        more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
        yield Problem(row["run"], printable(f"{lines[0]}{more}; {SEE}"))


def _missing_values(row: Mapping[str, Any]) -> Iterable[Problem]:
    """Problems of a run: metrics without a finite value, or a finished run without metrics."""
    lost = sorted(name for name, value in row["metrics"].items() if value is None)
    if lost:
        yield Problem(row["run"], f"no finite value of {', '.join(lost)}")
    elif row["state"] == "done" and not row["metrics"]:
        yield Problem(row["run"], "summary.json: holds no metric")


def _distinct(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Drop copies of a run: they are no additional evidence.

    A finished record is preferred to an unfinished one, then the one that ended last.
    """
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    twins = []
    for row in rows:
        key = row["arm_hash"], row["seed"]
        first = kept.setdefault(key, row)
        if first is row or first["path"].resolve() == row["path"].resolve():
            continue
        if (row["state"] == "done", row["end"]) > (first["state"] == "done", first["end"]):
            kept[key], first, row = row, row, first
        same = row["state"] != "done" or _results(row) == _results(first)
        other = "" if same else " and ended with other results"
        where = "" if row["run"] != first["run"] else f" in {printable(str(first['path'].parent))}"
        twins.append(
            Problem(row["run"], f"is the same run as {first['run']}{where}, which is taken{other}")
        )
    return list(kept.values()), twins


def _results(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a run, but for those of its machine."""
    return {
        name: value for name, value in row["metrics"].items() if not name.startswith(_OF_MACHINE)
    }
