"""Two runs or two studies side by side: metrics, configs and curves. It tests nothing.

Quality, load and specialisation come first, then what differs in the configs, then all else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moebench.catalogue import find
from moebench.errors import ConfigError, RecordError, apply_to_all, nearest
from moebench.plans import PRIMARY, Plan, study_of
from moebench.records import Record, find_records, printable
from moebench.report.read.frame import Frame, load
from moebench.report.read.row_cache import read_curves
from moebench.report.read.run import read_run
from moebench.report.read.studies import find_plans, plans_of_study
from moebench.report.show.blocks import Block, Cell, Grid, Heading, Sentences
from moebench.report.show.formats import as_latex, as_markdown, as_text

FIRST = (
    PRIMARY,
    "load/max_vio_micro",
    "load/max_vio_global",
    "router/replay_cost",
    "specialization/domain",
)
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
        RecordError: for a name of no run and no study, or a damaged run.
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
        frames = apply_to_all(lambda path: _frame(path, runs_dir), named)
        content = _of_studies(frames, [str(path) for path in named])
    else:
        for record, path in zip(records, named, strict=True):
            if record is None and not path.is_dir():
                _plans(path, runs_dir)  # raises for a name of neither
        raise ConfigError("diff: compares two runs or two studies, not one of each")
    if form == "json":
        return json.dumps(_as_dict(content), indent=2, ensure_ascii=False) + "\n"
    return WRITERS[form](content)


def _run(path: Path, runs_dir: Path) -> Record | None:
    records = (Record(path), Record(runs_dir / path))
    return next((record for record in records if record.exists()), None)


def _frame(path: Path, runs_dir: Path) -> Frame:
    if path.is_dir():
        return load(path)
    return load(runs_dir, {job.run for plan in _plans(path, runs_dir) for job in plan.jobs})


def _plans(path: Path, runs_dir: Path) -> list[Plan]:
    """The plans of a study; RecordError for a name of no run and no study."""
    plans, problems = find_plans([runs_dir])
    folders = {Path(problem.run) for problem in problems}
    folders |= {plan.folder for plan in plans if plan.folder}
    studies = sorted({name for folder in folders for name in (folder.name, study_of(folder))})
    if str(path) in studies:
        return plans_of_study(str(path), plans, problems, runs_dir)
    near = nearest(path.name, [*(record.name for record in find_records(runs_dir)), *studies])
    make = "moebench train makes a run, moebench sweep a study"
    what = f"did you mean {' or '.join(near)}?" if near else make
    raise RecordError(printable(f"{path}: no such run or study in {runs_dir}; {what}"))


# Two runs


def _of_runs(a: Record, b: Record) -> list[Block]:
    rows = [read_run(record) for record in (a, b)]
    return [
        Heading(f"A {printable(a.name)}, B {printable(b.name)}"),
        *_first(rows[0]["metrics"], rows[1]["metrics"]),
        _keys(_about(a, rows[0]), _about(b, rows[1])),
        _metrics(rows[0]["metrics"], rows[1]["metrics"]),
        *_curves(a, b),
    ]


def _about(record: Record, row: Mapping[str, Any]) -> dict[str, Any]:
    """Config, provenance, state and data of a run."""
    data = record.manifest().get("data", {}).get("content_hash", "?")
    return {**record.config(), **row["made_with"], "state": row["state"], "data": data}


def _keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> Block:
    differing = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    if not differing:
        return Sentences("Config and provenance", ["They are equal."])
    rows = [[_cell(text) for text in (key, _value(a, key), _value(b, key))] for key in differing]
    return Grid("Config and provenance", "Only what differs.", ["key", "A", "B"], rows)


def _value(config: Mapping[str, Any], key: str) -> str:
    return printable(str(config[key])) if key in config else "-"


def _first(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Block]:
    """Quality, load and specialisation, as far as a run has them."""
    rows = [
        [(name, _better(name)), *_both(a.get(name), b.get(name))]
        for name in FIRST
        if name in a or name in b
    ]
    title = "Quality, load and specialisation"
    return [Grid(title, "At the end.", ["metric", "A", "B", "B - A"], rows)] if rows else []


def _better(name: str) -> str:
    """Which values of a metric are better."""
    metric = find(name)
    return (
        "" if metric is None or metric.direction == "neither" else f"{metric.direction} is better"
    )


def _metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> Block:
    known = [name for name in sorted({*a, *b}) if not name.startswith(("tune/", "speed/"))]
    if not known:
        return Sentences("Other metrics", ["Neither run is finished."])
    names = [name for name in known if name not in FIRST]
    differing = [name for name in names if a.get(name) != b.get(name)]
    equal = len(names) - len(differing)
    if not differing:
        return Sentences("Other metrics", [f"All {equal} are equal, bit for bit."])
    rows = [[_cell(name), *_both(a.get(name), b.get(name))] for name in differing]
    caption = f"At the end; {equal} more are equal, bit for bit." if equal else "At the end."
    return Grid("Other metrics", caption, ["metric", "A", "B", "B - A"], rows)


def _curves(a: Record, b: Record) -> list[Block]:
    """The step from which the training loss differs, and validation nats at shared steps."""
    left, right = _curve(a), _curve(b)
    shared = left.index.intersection(right.index)
    if shared.empty:
        return [Sentences("Curves", ["They share no logged step."])]
    content: list[Block] = []
    if "train/loss" in left and "train/loss" in right:
        one, other = (run["train/loss"].reindex(shared).to_numpy(float) for run in (left, right))
        differing = np.flatnonzero((one != other) & ~np.isnan(one) & ~np.isnan(other))
        sentence = (
            f"The training loss differs from step {shared[differing[0]]:.0f} on."
            if len(differing)
            else f"The training loss is equal, bit for bit, at all {len(shared)} shared steps."
        )
        content.append(Sentences("Curves", [sentence]))
    if PRIMARY in left and PRIMARY in right:
        pairs = [(step, left[PRIMARY][step], right[PRIMARY][step]) for step in shared]
        pairs = [(step, x, y) for step, x, y in pairs if x == x and y == y]
        kept = sorted({round(i) for i in np.linspace(0, len(pairs) - 1, MOST_STEPS)})
        rows = [
            [_cell(f"{step:.0f}"), *_both(x, y)] for step, x, y in (pairs[i] for i in kept if pairs)
        ]
        headers = ["step", "A", "B", "B - A"]
        content.append(Grid(f"{PRIMARY} on the way", "At shared evaluations.", headers, rows))
    return content


def _curve(record: Record) -> Any:
    """A data frame of training loss and validation nats by step."""
    table, failed = read_curves(record.path.parent, [record], [PRIMARY, "train/loss"])
    for _, reason in failed:
        raise RecordError(f"{record.path}: {reason}")
    return table.to_pandas().set_index("step")


# Two studies


def _of_studies(frames: Sequence[Frame], names: Sequence[str]) -> list[Block]:
    """Means of arms of one name over finished seeds, and what the two sets of runs do not share."""
    a, b = frames
    content: list[Block] = [Heading("A {}, B {}".format(*map(printable, names)))]
    for metric in FIRST:
        rows = []
        for arm in dict.fromkeys([*a.metrics["arm"], *b.metrics["arm"]]):
            values = [_values(frame, arm, metric) for frame in frames]
            if any(values):
                means = [sum(v.values()) / len(v) if v else None for v in values]
                seeds = f"{len(values[0])} and {len(values[1])}"
                rows.append([_cell(printable(arm)), _cell(seeds), *_both(*means)])
        if rows:
            headers = ["arm", "seeds", "A", "B", "B - A"]
            caption = "Means over finished seeds; differences of studies are not paired."
            content.append(Grid(metric, caption, headers, rows))
    content.append(_keys(_shared_keys(a), _shared_keys(b)))
    only = [
        f"only in {side}: {printable(arm)}"
        for side, frame, other in (("A", a, b), ("B", b, a))
        for arm in dict.fromkeys(frame.runs["arm"])
        if arm not in set(other.runs["arm"])
    ]
    return [*content, Sentences("Arms", only)] if only else content


def _shared_keys(frame: Frame) -> dict[str, Any]:
    """The keys that all runs have in common, and the number of runs and of tables."""
    sciences = [row["science"] for row in frame.rows()]
    first = sciences[0] if sciences else {}
    same = {k: v for k, v in first.items() if all(other.get(k) == v for other in sciences)}
    return same | {"runs": len(sciences), "tables": len(frame.tables)}


def _values(frame: Frame, arm: str, metric: str) -> dict[str, float]:
    """A metric of an arm, by run."""
    metrics = frame.metrics
    rows = metrics.loc[(metrics["arm"] == arm) & (metrics["metric"] == metric)]
    return dict(zip(rows["run"], rows["value"], strict=True))


# Cells


def _both(a: float | None, b: float | None) -> list[Cell]:
    """Two values and their difference."""
    change = "-" if a is None or b is None else f"{b - a:+.4g}"
    return [_cell("-" if value is None else f"{value:.6g}") for value in (a, b)] + [_cell(change)]


def _cell(text: str) -> Cell:
    return text, ""


def _as_dict(content: Sequence[Block]) -> dict[str, Any]:
    """The same blocks as JSON values: the rows of a grid by header, and lists of sentences."""
    grids = [
        {
            "title": block.title,
            "rows": [
                dict(zip(block.headers, (text for text, _ in row), strict=True))
                for row in block.rows
            ],
        }
        for block in content
        if isinstance(block, Grid)
    ]
    sentences = [
        {"title": block.title, "items": list(block.items)}
        for block in content
        if isinstance(block, Sentences)
    ]
    return {"schema_version": 1, "tables": grids, "told": sentences}
