"""Two runs or two studies side by side: configs, metrics and curves. It tests nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moebench.errors import ConfigError, RecordError
from moebench.plans import PRIMARY
from moebench.records import Record, printable
from moebench.report.read.frame import Frame, load
from moebench.report.read.row_cache import read_curves
from moebench.report.read.run import read_run
from moebench.report.read.studies import find_plans, plans_of_study
from moebench.report.show.blocks import Block, Cell, Grid, Heading, Sentences
from moebench.report.show.formats import as_latex, as_markdown, as_text

OF_STUDIES = (PRIMARY, "load/max_vio_micro", "load/max_vio_global", "specialization/domain")
MOST_STEPS = 12  # rows of a table of curves
WRITERS = {"table": as_text, "md": as_markdown, "latex": as_latex}


def compare_two(named: Sequence[Path], runs_dir: Path, form: str = "table") -> str:
    """Compare two runs, by directory or name, or two studies or folders of runs.

    Args:
        named: A and B.
        runs_dir: where names of runs and of studies are looked up.
        form: table, md, latex or json.

    Raises:
        ConfigError: unless there are two, both runs or neither; or for another form.
        RecordError: for a name that means nothing, or a damaged run.
    """
    if len(named) != 2:
        raise ConfigError(
            f"diff: compares two runs or two studies, as in moebench diff A B, and {len(named)} "
            f"{'was' if len(named) == 1 else 'were'} given"
        )
    if form not in (*WRITERS, "json"):
        raise ConfigError(f"--format {printable(form)}: must be one of {', '.join(WRITERS)}, json")
    records = [_run(path, runs_dir) for path in named]
    first, second = records
    if first is not None and second is not None:
        content = _of_runs(first, second)
    elif first is None and second is None:
        content = _of_studies(
            [_frame(path, runs_dir) for path in named], [str(path) for path in named]
        )
    else:
        raise ConfigError("diff: compares two runs or two studies, not one of each")
    if form == "json":
        return json.dumps(_as_dict(content), indent=2, ensure_ascii=False) + "\n"
    return WRITERS[form](content)


def _run(path: Path, runs_dir: Path) -> Record | None:
    found = [Record(each) for each in (path, runs_dir / path) if Record(each).exists()]
    return found[0] if found else None


def _frame(path: Path, runs_dir: Path) -> Frame:
    if path.is_dir():
        return load(path)
    unknown = f"{printable(str(path))}: no such run or study"
    found = plans_of_study(str(path), *find_plans([runs_dir]), runs_dir, unknown)
    return load(runs_dir, {job.run for plan in found for job in plan.jobs})


# Two runs


def _of_runs(a: Record, b: Record) -> list[Block]:
    rows = [read_run(record) for record in (a, b)]
    made = [{**row["made_with"], "state": row["state"]} for row in rows]
    configs = [{**record.config(), **about} for record, about in zip((a, b), made, strict=True)]
    for config, record in zip(configs, (a, b), strict=True):
        config["data"] = record.manifest().get("data", {}).get("content_hash", "?")
    found: list[Block] = [
        Heading(f"A {printable(a.name)}, B {printable(b.name)}"),
        _keys(*configs),
        _metrics(rows[0]["metrics"], rows[1]["metrics"]),
    ]
    return found + _curves(a, b)


def _keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> Block:
    differing = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    if not differing:
        return Sentences("Config and provenance", ["They are equal."])
    rows = [[_cell(key), _cell(_told(a, key)), _cell(_told(b, key))] for key in differing]
    return Grid("Config and provenance", "Only what differs.", ["key", "A", "B"], rows)


def _told(config: Mapping[str, Any], key: str) -> str:
    return printable(str(config[key])) if key in config else "-"


def _metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> Block:
    names = [name for name in sorted({*a, *b}) if not name.startswith(("tune/", "speed/"))]
    if not names:
        return Sentences("Metrics", ["Neither run is finished."])
    equal = sum(a.get(name) == b.get(name) for name in names)
    rows = [
        [_cell(name), *_three(a.get(name), b.get(name))]
        for name in names
        if a.get(name) != b.get(name)
    ]
    if not rows:
        return Sentences("Metrics", [f"All {equal} are equal, bit for bit."])
    caption = f"At the end; {equal} more are equal, bit for bit." if equal else "At the end."
    return Grid("Metrics", caption, ["metric", "A", "B", "B - A"], rows)


def _curves(a: Record, b: Record) -> list[Block]:
    """Validation nats at shared steps, and from which step on the training loss differs."""
    columns = []
    for record in (a, b):
        table, failed = read_curves(record.path.parent, [record], [PRIMARY, "train/loss"])
        for _, reason in failed:
            raise RecordError(f"{record.path}: {reason}")
        columns.append(table.to_pandas().set_index("step"))
    left, right = columns
    shared = left.index.intersection(right.index)
    if shared.empty:
        return [Sentences("Curves", ["They share no logged step."])]
    found: list[Block] = []
    if "train/loss" in left and "train/loss" in right:
        one, other = (each["train/loss"].reindex(shared).to_numpy(float) for each in columns)
        apart = np.flatnonzero((one != other) & ~np.isnan(one) & ~np.isnan(other))
        told = (
            f"The training loss is equal, bit for bit, at all {len(shared)} shared steps."
            if not len(apart)
            else f"The training loss differs from step {shared[apart[0]]:.0f} on."
        )
        found.append(Sentences("Curves", [told]))
    if PRIMARY in left and PRIMARY in right:
        pairs = [(step, left[PRIMARY][step], right[PRIMARY][step]) for step in shared]
        pairs = [each for each in pairs if each[1] == each[1] and each[2] == each[2]]
        kept = sorted({round(i) for i in np.linspace(0, len(pairs) - 1, MOST_STEPS)})
        rows = [
            [_cell(f"{pairs[i][0]:.0f}"), *_three(pairs[i][1], pairs[i][2])] for i in kept if pairs
        ]
        headers = ["step", "A", "B", "B - A"]
        found.append(Grid(f"{PRIMARY} on the way", "At shared evaluations.", headers, rows))
    return found


# Two studies


def _of_studies(frames: Sequence[Frame], names: Sequence[str]) -> list[Block]:
    """Arms by name: their means over finished seeds, and what the sets of runs do not share."""
    a, b = frames
    name, other = map(printable, names)
    found: list[Block] = [Heading(f"A {name}, B {other}")]
    keys = [_shared_keys(frame) for frame in (a, b)]
    found.append(_keys(*keys))
    arms = list(dict.fromkeys([*a.metrics["arm"], *b.metrics["arm"]]))
    for metric in OF_STUDIES:
        rows = []
        for arm in arms:
            values = [_values(frame, arm, metric) for frame in (a, b)]
            if any(values):
                means = [sum(v.values()) / len(v) if v else None for v in values]
                seeds = f"{len(values[0])} and {len(values[1])}"
                rows.append([_cell(printable(arm)), _cell(seeds), *_three(*means)])
        if rows:
            headers = ["arm", "seeds", "A", "B", "B - A"]
            caption = "Means over finished seeds; differences of studies are not paired."
            found.append(Grid(metric, caption, headers, rows))
    only = [
        f"only in {side}: {printable(arm)}"
        for side, frame, another in (("A", a, b), ("B", b, a))
        for arm in dict.fromkeys(frame.runs["arm"])
        if arm not in set(another.runs["arm"])
    ]
    return [*found, *([Sentences("Arms", only)] if only else [])]


def _shared_keys(frame: Frame) -> dict[str, Any]:
    """What all runs have in common, and the number of tables into which the others fall."""
    sciences = [row["science"] for row in frame.rows()]
    first = sciences[0] if sciences else {}
    same = {k: v for k, v in first.items() if all(each.get(k) == v for each in sciences)}
    return same | {"runs": len(sciences), "tables": len(frame.tables)}


def _values(frame: Frame, arm: str, metric: str) -> dict[str, float]:
    found = frame.metrics
    own = found.loc[(found["arm"] == arm) & (found["metric"] == metric)]
    return dict(zip(own["run"], own["value"], strict=True))


# Cells


def _three(a: float | None, b: float | None) -> list[Cell]:
    change = "-" if a is None or b is None else f"{b - a:+.4g}"
    return [_cell("-" if v is None else f"{v:.6g}") for v in (a, b)] + [_cell(change)]


def _cell(text: str) -> Cell:
    return text, ""


def _as_dict(content: Sequence[Block]) -> dict[str, Any]:
    """The same blocks: a list of rows each, by header."""
    grids = [
        {
            "title": each.title,
            "rows": [
                dict(zip(each.headers, (main for main, _ in row), strict=True)) for row in each.rows
            ],
        }
        for each in content
        if isinstance(each, Grid)
    ]
    told = [
        {"title": each.title, "items": list(each.items)}
        for each in content
        if isinstance(each, Sentences)
    ]
    return {"schema_version": 1, "tables": grids, "told": told}
