"""From records to a report: what the arms do to load, specialisation and perplexity.

`make_report` reads records (`frame.py`) and plans (`plan.py`), sets arms beside their baseline
(`arms.py`, by the rules of `statistics.py`) and the paper's findings beside both (`findings.py`).
The `Report` shows them: as blocks (`table.py`, with the sentences of `words.py`) rendered as text,
Markdown and LaTeX (`render.py`), as JSON, CSV and Parquet (`export.py`), as plots (`plots.py`) and
as a page (`page.py`). `load` gives the frame to a notebook. No torch.
"""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moebench.errors import ConfigError, RecordError
from moebench.records import printable
from moebench.report.infer.arms import Arm, Table, make_table
from moebench.report.read.frame import Frame, Problem
from moebench.report.read.frame import load as load_frame
from moebench.report.read.studies import Plan, find_plans, of_study
from moebench.report.show.diff import compare_two
from moebench.report.show.export import as_csv, as_dict, as_parquet, write
from moebench.report.show.formats import as_latex, as_markdown, as_text
from moebench.report.show.table import Block, Heading, Sentences, Shown, blocks

if TYPE_CHECKING:
    from moebench.report.draw.plots import Plot

__all__ = ["FORMATS", "Report", "compare_two", "load", "make_report", "write"]

FORMATS = ("table", "md", "csv", "json", "latex", "parquet")


class Unfinished(NamedTuple):
    """A run without results: its state, why, and how far it came, in steps."""

    run: str
    state: str
    reason: str
    step: float | None
    steps: float | None


@dataclass(frozen=True)
class Report:
    """What some records say.

    Attributes:
        title: the study and its question; "" for a report on no study.
        tables: one for each set of runs that may be compared.
        unfinished: runs that failed, stopped, wait, go on or have not begun.
        problems: records and plans that could not be used.
        frame: what all of it was made from.
        shown: what the reader asked for.
        plans: of the runs.
    """

    title: str
    tables: tuple[Table, ...]
    unfinished: tuple[Unfinished, ...]
    problems: tuple[Problem, ...]
    frame: Frame
    shown: Shown = Shown()
    plans: tuple[Plan, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The object that `moebench report --json` prints."""
        return as_dict(self.tables, self.unfinished, self.problems, self.shown.metrics)

    def plots(self, table: Table) -> "list[Plot]":
        """The pictures of one of the tables.

        Raises:
            RecordError: if the metrics of a run on its way are damaged.
        """
        from moebench.report.draw.plots import plots

        return plots(table, self.frame)

    def page(self, command: str) -> str:
        """The report with its plots as one HTML file; `command` is what was typed to make it."""
        from moebench.report.show.page import Section, page

        paths = {row["run"]: row["path"] for row in self.frame.rows()}
        sections = [
            Section(blocks(table, self.shown), self.plots(table), table, paths)
            for table in self.tables
        ]
        missing = self._missing()
        return page(
            self.title, [*sections, *([Section(missing)] if missing else [])], self.plans, command
        )

    def blocks(self) -> list[Block]:
        """The report in order: title, tables with their sentences, what is missing."""
        found: list[Block] = [Heading(self.title)] if self.title else []
        for table in self.tables:
            found += blocks(table, self.shown)
        return found + self._missing()

    def _missing(self) -> list[Block]:
        found: list[Block] = []
        if self.unfinished:
            found.append(Sentences("Not finished", [_told(each) for each in self.unfinished]))
        if self.problems:
            left = [f"{run}: {reason}" for run, reason in self.problems]
            found.append(Sentences("Left out", left))
        return found

    def render(self, format: str = "table") -> str:
        """The report as `table` (text of 100 columns), `md`, `latex`, `csv` or `json`.

        Raises:
            ConfigError: for any other word.
        """
        return self.encode(format).decode()

    def encode(self, format: str = "table") -> bytes:
        """The same as a file holds it, and `parquet` too, which holds what `csv` does."""
        if format == "parquet":
            return as_parquet(self.tables, self.shown.metrics)
        return self._text(format).encode()

    def _text(self, format: str) -> str:
        if format == "table":
            return as_text(self.blocks())
        if format == "md":
            return as_markdown(self.blocks())
        if format == "latex":
            return as_latex(self.blocks())
        if format == "csv":
            return as_csv(self.tables, self.shown.metrics)
        if format == "json":
            return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        raise ConfigError(f"--format {printable(format)}: must be one of {', '.join(FORMATS)}")


def make_report(
    roots: Sequence[Path],
    *,
    study: str | None = None,
    baseline: str | None = None,
    runs_dir: Path = Path("runs"),
    where: Sequence[str] = (),
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    sort: str | None = None,
    at: int | None = None,
    per_domain: bool = False,
) -> Report:
    """Report on the finished runs under some directories.

    Args:
        roots: directories of runs, or runs; none stands for `runs_dir`.
        study: take only the runs of this study's plans, by its name or its directory's.
        baseline: the arm that the others are compared with. By default the plan's, else `micro`,
            else the first arm.
        runs_dir: where studies are looked up, beside the roots.
        where, by: as `frame.load` takes them.
        metrics: names, with * and ?, that are shown alone.
        sort: a metric by whose mean arms are sorted, the largest first after a "-".
        at: a step at which the runs were evaluated, in the place of their end.
        per_domain: whether to add the nats of each domain.

    Raises:
        RecordError: if there is nothing to report, or no such study.
        ConfigError: if the baseline is no arm with a finished run, or a condition, key, metric or
            step is none.
    """
    roots = list(roots) or [runs_dir]
    title = ""
    plans, problems = find_plans([*roots, runs_dir])
    only = None
    if study is not None:
        plans = of_study(study, plans, problems, runs_dir)
        only = {run.run for plan in plans for run in plan.runs}
        problems = []
        title = " and ".join(dict.fromkeys(map(_title, plans)))
    frame = load_frame(roots, only, where=where, by=by).checked()
    measured = frame.runs["run"].isin(list(frame.metrics["run"]))
    done = frame.runs.loc[(frame.runs["state"] == "done") & measured]
    if done.empty:
        raise RecordError(_nothing_done(roots, study, frame))
    if baseline is not None and baseline not in set(done["arm"]):
        known = ", ".join(sorted(set(done["arm"])))
        raise ConfigError(f"--baseline {printable(baseline)}: no such arm; there are {known}")
    if at is not None:
        frame = frame.at(at)
        done = done.loc[done["run"].isin(list(frame.metrics["run"]))]
        title += f" (at step {at})" if title else f"At step {at}"
    known = sorted({*frame.metrics["metric"]})
    shown = Shown(tuple(_chosen(metrics, known)), per_domain)
    if sort is not None:
        _chosen([sort.removeprefix("-")], known, "--sort")
    tables = [make_table(frame, int(i), plans, baseline) for i in sorted(set(done["table"]))]
    if sort is not None:
        tables = [_sorted(table, sort) for table in tables]
    return Report(
        title=title,
        tables=tuple(tables),
        unfinished=tuple(_unfinished(frame, plans if study is not None else [])),
        problems=(*problems, *frame.problems),
        frame=frame,
        shown=shown,
        plans=tuple(plans),
    )


def load(
    roots: Path | str | Sequence[Path | str] = "runs",
    *,
    study: str | None = None,
    where: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Frame:
    """Runs as tidy data frames, for a notebook: `load().metrics`, `load("runs").curves()`.

    Args:
        roots: directories of runs, or runs.
        study: take only the runs of this study's plans, which lie in the first of the roots.
        where, by: as `frame.load` takes them.

    Raises:
        RecordError: if there is no run, or no such study.
    """
    paths = [Path(roots)] if isinstance(roots, Path | str) else [Path(root) for root in roots]
    only = None
    if study is not None:
        plans = of_study(study, *find_plans(paths), paths[0])
        only = {run.run for plan in plans for run in plan.runs}
    return load_frame(paths, only, where=where, by=by)


def _chosen(patterns: Sequence[str], known: Sequence[str], option: str = "--metrics") -> list[str]:
    """The metrics that are meant, in the order of the patterns."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            near = difflib.get_close_matches(pattern, known, n=3) or list(known)
            raise ConfigError(
                f"{option} {printable(pattern)}: these runs hold no such metric; "
                f"did you mean {' or '.join(near[:3])}?"
            )
        found |= dict.fromkeys(names)
    return list(found)


def _sorted(table: Table, by: str) -> Table:
    """The baseline first, then by a metric's mean; arms without it last."""
    metric, sign = by.removeprefix("-"), -1 if by.startswith("-") else 1

    def key(arm: Arm) -> float:
        found = arm.metrics.get(metric)
        return math.inf if found is None or found.mean is None else sign * found.mean

    first, *rest = table.arms
    return replace(table, arms=(first, *sorted(rest, key=key)))


def _title(plan: Plan) -> str:
    return f"Study {plan.name}: {plan.question}" if plan.question else f"Study {plan.name}"


def _unfinished(frame: Frame, plans: Sequence[Plan]) -> list[Unfinished]:
    found = [
        Unfinished(str(row["run"]), str(row["state"]), str(row["reason"]), *_steps(row))
        for row in frame.rows()
        if row["state"] != "done"
    ]
    seen = {*frame.runs["run"], *(problem.run for problem in frame.problems)}
    planned = dict.fromkeys(run.run for plan in plans for run in plan.runs)
    missing = [printable(run) for run in planned if printable(run) not in seen]
    return found + [Unfinished(run, "not begun", "", None, None) for run in missing]


def _steps(row: dict[Any, Any]) -> tuple[float | None, float | None]:
    step, steps = (None if row[key] != row[key] else row[key] for key in ("step", "steps"))
    return step, steps


def _told(each: Unfinished) -> str:
    where = f" at step {each.step:.0f}" if each.step is not None else ""
    if where and each.steps is not None:
        where += f" of {each.steps:.0f}"
    return f"{each.run}: {each.state}{where}" + (f": {each.reason}" if each.reason else "")


def _nothing_done(roots: Sequence[Path], study: str | None, frame: Frame) -> str:
    where = ", ".join(map(str, roots)) + (f", study {printable(study)}" if study else "")
    counts = frame.runs["state"].value_counts(sort=False).to_dict()
    states = [f"{n} {state}" for state, n in counts.items()]
    if frame.problems:
        first = frame.problems[0]
        states.append(f"{len(frame.problems)} left out, the first: {first.run}: {first.reason}")
    told = f" ({'; '.join(states)})" if states else ""
    return f"{where}: holds no finished run{told}; make some with moebench sweep"
