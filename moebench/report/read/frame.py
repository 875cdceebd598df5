"""Records become a tidy frame: one row a run and metric, and what could not be read, by name.

Runs are compared within a *table*: runs equal in data, sizes, steps, precision, model, class of
device and version of moebench. Nothing is averaged across tables.
"""

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moebench.errors import ConfigError, RecordError
from moebench.plans import PRIMARY
from moebench.records import EVALUATED, SETTLED, Record, find_records, printable
from moebench.report.read.row_cache import read_curves, read_rows
from moebench.report.read.run import SCOPES, read_run

COMPARABLE = (
    "data",
    "seq_len",
    "global_bsz",
    "train.steps",
    "train.precision",
    "data.valid_sequences",
)  # and every model.* key
ABSENT = "absent"  # stands for the value of a key that an arm leaves at its neutral value
_FILES = ("manifest.json", "status.json", "summary.json", "metrics.jsonl")


class Problem(NamedTuple):
    """A record, or a part of one, that the report leaves out, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class Frame:
    """What the records under some directories hold.

    Attributes:
        runs: one row a run: `run` (directory name), `arm` (a label, unique within its table),
            `arm_hash`, `seed`, `state`, `reason`, `step`, `steps`, `table` (an index of `tables`),
            `tokens` (seen by a finished run), `sequences` and `group_tokens` (size of the balance
            group), `random_micro`, `random_batch`, `random_global` (MaxVio of random routing),
            `science` (every key that can change a result and is not at its neutral value),
            `domains`, `first_sequences` (a hash of those of step 1, whatever their order),
            `made_with` (versions, device, commit), `end` and `path`. Missing numbers are NaN.
        metrics: one row a finished run and metric: `run`, `arm`, `arm_hash`, `seed`, `table`,
            `metric`, `value`.
        tables: of each table, the keys in which its runs are equal, with their values.
        problems: what was left out.
        unsound: runs whose curves are left out; see `checked`.
        starts: `valid/nats` before the first step, by run, once it is `checked`.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    tables: tuple[dict[str, Any], ...]
    problems: tuple[Problem, ...]
    unsound: frozenset[str] = frozenset()
    starts: Mapping[str, float] = field(default_factory=dict)

    def curves(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """What the finished runs measured on their way: `run`, `arm`, `seed`, `table`, `step` and a
        column a metric, one row a logged step, NaN where a step has no value.

        Args:
            metrics: the columns to read; None reads all.

        Raises:
            RecordError: if a run's metrics are damaged, and `checked` did not leave them out.
        """
        curves, problems = self._curves(metrics)
        for run, reason in problems:
            raise RecordError(f"{run}: {reason}")
        return curves

    def checked(self) -> "Frame":
        """The frame without the curves that are damaged or were changed, which become problems."""
        curves, problems = self._curves([PRIMARY])
        first = curves.loc[curves["step"] == 0]
        nats = first.get(PRIMARY, [])
        starts = {run: float(v) for run, v in zip(first["run"], nats, strict=False) if v == v}
        unsound = self.unsound | {each.run for each in problems}
        told = [Problem(run, f"{reason}; its curves are left out") for run, reason in problems]
        return replace(
            self, problems=(*self.problems, *told), unsound=frozenset(unsound), starts=starts
        )

    def _curves(self, metrics: Sequence[str] | None) -> tuple[Any, list[Problem]]:
        folders: dict[Path, list[Record]] = {}
        about = [
            row for row in self.rows() if row["state"] == "done" and row["run"] not in self.unsound
        ]
        for row in about:
            folders.setdefault(row["path"].parent, []).append(Record(row["path"]))
        problems, parts = [], [pd.DataFrame({"run": pd.Series(dtype=str), "step": []})]
        for folder, records in folders.items():
            found, failed = read_curves(folder, records, metrics)
            problems += [Problem(printable(r.name), _brief(r, reason)) for r, reason in failed]
            parts.append(found.to_pandas(split_blocks=True))
        curves: Any = pd.concat(parts[1:]) if len(parts) > 1 else parts[0]
        names: Any = curves["run"].astype("category").cat.remove_unused_categories()
        names = names.cat.rename_categories([printable(str(n)) for n in names.cat.categories])
        curves["run"] = names
        for key in ("arm", "seed", "table"):
            of_run = {row["run"]: row[key] for row in about}
            values = [of_run[name] for name in names.cat.categories]
            kind = "category" if key == "arm" else int
            taken = pd.Series(values, dtype=object).take(names.cat.codes.to_numpy())
            curves[key] = taken.to_numpy()
            curves[key] = curves[key].astype(kind)
        return curves.reset_index(drop=True), problems

    def at(self, step: int) -> "Frame":
        """The frame with the metrics as they were at a step at which the runs were evaluated.

        As in a summary, what is measured at every step is the mean over the last tenth of the
        steps until then. Runs without an evaluation at that step have no metrics.

        Raises:
            ConfigError: if no finished run was evaluated at that step.
        """
        curves: Any = self.curves()
        evaluated = curves[curves[PRIMARY].notna()] if PRIMARY in curves else curves[:0]
        known = sorted({int(each) for each in evaluated["step"]})
        if step not in known:
            there = ", ".join(map(str, known)) or "none"
            raise ConfigError(
                f"--at {step}: no finished run was evaluated there; choose one of {there}"
            )
        runs = {*evaluated[evaluated["step"] == step]["run"]}
        curves = curves[curves["run"].isin(runs) & (curves["step"] <= step)]
        keys = ["run", "arm", "seed", "table"]
        names = [name for name in curves.columns if name not in (*keys, "step")]
        last = [name for name in names if name.startswith(EVALUATED)]
        late = curves[curves["step"] > step * (1 - SETTLED)] if step else curves
        means = late.groupby("run", observed=True)[[n for n in names if n not in last]].mean()
        values = pd.concat([curves[curves["step"] == step].set_index("run")[last], means], axis=1)
        arms = {row["run"]: row for row in self.rows()}
        kept = ("run", "arm", "arm_hash", "seed", "table")
        metrics = [
            {**{key: arms[run][key] for key in kept}, "metric": name, "value": value}
            for run, of_run in values.to_dict("index").items()
            for name, value in of_run.items()
            if value == value
        ]
        return replace(self, metrics=pd.DataFrame(metrics, columns=[*kept, "metric", "value"]))

    def rows(self) -> list[dict[str, Any]]:
        """The runs, a dictionary each."""
        return [{str(k): v for k, v in row.items()} for row in self.runs.to_dict("records")]


def load(
    roots: Path | str | Sequence[Path | str],
    only: Collection[str] | None = None,
    *,
    where: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Frame:
    """Read the records under some directories, or the records that these directories are.

    Args:
        roots: directories.
        only: names of the run directories to read; None reads all.
        where: conditions `key=value` or `key=value,value` that the runs taken all meet: keys of
            the config, and `arm` (with * and ?) and `seed`.
        by: keys in which runs of one table are equal, too.

    Raises:
        RecordError: if a directory holds no record at all.
        ConfigError: if a condition is none, or names no key.
    """
    roots = [Path(roots)] if isinstance(roots, Path | str) else [Path(root) for root in roots]
    conditions = [_condition(text) for text in where]
    for key in by:
        _check_key(key, "--by")
    problems, rows = [], []
    for root in dict.fromkeys(roots):
        records, torn = find_records(root), _torn(root)
        if not records and not torn:
            raise RecordError(f"{root}: {_nothing(root)}")
        problems += [each for each in torn if only is None or each.run in only]
        records = [each for each in records if only is None or each.name in only]
        folder = root.parent if Record(root).exists() else root
        found, failed = read_rows(folder, records, read_run)
        rows += [row | {"path": record.path} for record, row in found]
        for record, reason in failed:
            problems.append(Problem(printable(record.name), printable(_brief(record, reason))))
    rows = [row for row in rows if all(met(row) for met in conditions)]
    rows, twins = _distinct(rows)
    problems += twins
    for row in rows:
        lost = sorted(name for name, value in row["metrics"].items() if value is None)
        if lost:
            problems.append(Problem(row["run"], f"no finite value of {', '.join(lost)}"))
        elif row["state"] == "done" and not row["metrics"]:
            problems.append(Problem(row["run"], "summary.json: holds no metric"))
    tables = _number_tables(rows, by)
    _tell_apart(rows)
    kept = ("run", "arm", "arm_hash", "seed", "table")
    metrics = [
        {**{key: row[key] for key in kept}, "metric": name, "value": value}
        for row in rows
        for name, value in row["metrics"].items()
        if value is not None
    ]
    columns = [*kept, "metric", "value"]
    return Frame(
        runs=pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_NUMBERS, float)),
        metrics=pd.DataFrame(metrics, columns=columns),
        tables=tables,
        problems=tuple(problems),
    )


_NUMBERS = (
    *("step", "steps", "tokens", "sequences", "group_tokens"),
    *(f"random_{scope}" for scope in SCOPES),
)
_COLUMNS = [
    *("run", "arm", "arm_hash", "seed", "state", "reason", "table", *_NUMBERS),
    *("science", "domains", "first_sequences", "made_with", "end", "path"),
]


def _torn(root: Path) -> list[Problem]:
    """Directories with files of a record but not the one by which it is found."""
    if Record(root).exists() or not root.is_dir():
        return []
    return [
        Problem(printable(path.name), "config.yaml: is missing")
        for path in sorted(root.iterdir())
        if not (path / "config.yaml").is_file() and any((path / name).is_file() for name in _FILES)
    ]


def _nothing(root: Path) -> str:
    if not root.is_dir():
        return "is no directory; name one with runs, or make some with moebench sweep"
    return "holds no runs; make some with moebench sweep"


def _distinct(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Each run once, since copies are no further evidence.

    A finished record comes before another, then the one that ended last.
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
        same = row["state"] != "done" or row["metrics"] == first["metrics"]
        other = "" if same else " and ended with other results"
        where = "" if row["run"] != first["run"] else f" in {printable(str(first['path'].parent))}"
        twins.append(
            Problem(row["run"], f"is the same run as {first['run']}{where}, which is taken{other}")
        )
    return list(kept.values()), twins


def _number_tables(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Set `table` in each row: in order of the values of `by`, then of most finished runs."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for row in rows:
        science = row["science"]
        keys = {key: science.get(key) for key in COMPARABLE}
        keys |= {key: value for key, value in science.items() if key.startswith("model.")}
        keys |= {"device": row["device"], "moebench": row["made_with"].get("moebench", "?")}
        keys |= {key: value_of(row, key) for key in by}
        name = json.dumps(keys, sort_keys=True)
        found.setdefault(name, (keys, []))[1].append(row)

    def place(each: tuple[dict[str, Any], list[dict[str, Any]]]) -> tuple[Any, ...]:
        values = [each[0][key] for key in by]
        named = [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in values]
        return (*named, -sum(row["state"] == "done" for row in each[1]))

    ordered = sorted(found.values(), key=place)
    for number_, (_, members) in enumerate(ordered):
        for row in members:
            row["table"] = number_
    return tuple(keys for keys, _ in ordered)


def value_of(row: Mapping[str, Any], key: str) -> Any:
    """A run's value of a key of the config, of `arm` or of `seed`; None if it has none.

    `scope` is named as it is typed: a group of a micro-batch is `micro`, of the whole step
    `global`.
    """
    if key in ("arm", "seed"):
        return row[key]
    science = row["science"]
    if key == "scope" and science.get("scope") == "group":
        sizes = {1: "sequence", science.get("micro_bsz"): "micro"}
        return sizes.get(science.get("balance_bsz"), "global")
    if key in science:
        return science[key]
    from moebench.config.presets import KNOBS
    from moebench.config.schema import ALWAYS, NEVER

    neutral = KNOBS[key].metadata["neutral"] if key in KNOBS else None
    return None if neutral is ALWAYS or neutral is NEVER else neutral


def _check_key(key: str, option: str) -> None:
    from moebench.config.presets import KNOBS

    known = ("arm", "seed", "data", *KNOBS)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see docs/keys.md"
        raise ConfigError(f"{option} {printable(key)}: there is no such key; {remedy}")


def _condition(text: str) -> Any:
    """What tells whether a row meets `key=value,...`."""
    key, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(f"--where {printable(text)}: must be KEY=VALUE, as in seed=0,1")
    _check_key(key, "--where")

    def met(row: Mapping[str, Any]) -> bool:
        value = _plain(value_of(row, key))
        return any(
            fnmatchcase(value, each) if key == "arm" else value in (each, _plain(_read(each)))
            for each in values.split(",")
        )

    return met


def _read(text: str) -> Any:
    """A typed value as the config has it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _brief(record: Record, reason: str) -> str:
    return reason.replace(f"{record.path}/", "").replace(f"{record.path}: ", "")


def _tell_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Append to labels that two arms of a table share the science keys in which they differ."""
    sharing: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        arms = sharing.setdefault((row["table"], row["arm"]), {})
        arms[row["arm_hash"]] = {k: v for k, v in row["science"].items() if k != "seed"}
    labels = {key: _labels(key[1], arms) for key, arms in sharing.items()}
    for row in rows:
        row["arm"] = labels[row["table"], row["arm"]][row["arm_hash"]]


def _labels(shared: str, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A label for each arm hash; the hash itself where all keys are equal."""
    if len(arms) == 1:
        return dict.fromkeys(arms, shared)
    keys = sorted(set().union(*arms.values()))
    differing = [
        key for key in keys if len({json.dumps(arm.get(key, ABSENT)) for arm in arms.values()}) > 1
    ]
    labels = {
        name: " ".join([shared, *(f"{key}={_plain(arm[key])}" for key in differing if key in arm)])
        for name, arm in arms.items()
    }
    unique = len(set(labels.values())) == len(labels)
    return {
        name: printable(label if unique else f"{label} ({name})") for name, label in labels.items()
    }


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
