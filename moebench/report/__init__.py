"""From records to a report: what the arms do to load, specialisation and perplexity.

`make_report` reads records (`frame.py`) and plans (`plan.py`), sets arms beside their baseline
(`arms.py`, by the rules of `statistics.py`), and the `Report` shows them: as text and Markdown
(`table.py`, with the sentences of `words.py`), as JSON and CSV (`export.py`). No torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moebench.errors import ConfigError, RecordError
from moebench.records import printable
from moebench.report.arms import Table, make_table
from moebench.report.export import as_csv, as_dict
from moebench.report.frame import Frame, Problem, load
from moebench.report.plan import Plan, find_plans, of_study
from moebench.report.table import Block, Heading, Sentences, as_markdown, as_text, blocks

FORMATS = ("table", "md", "csv", "json")


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
    """

    title: str
    tables: tuple[Table, ...]
    unfinished: tuple[Unfinished, ...]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that `moebench report --json` prints."""
        return as_dict(self.tables, self.unfinished, self.problems)

    def blocks(self) -> list[Block]:
        """The report in order: title, tables with their sentences, what is missing."""
        found: list[Block] = [Heading(self.title)] if self.title else []
        for table in self.tables:
            found += blocks(table)
        if self.unfinished:
            found.append(Sentences("Not finished", [_told(each) for each in self.unfinished]))
        if self.problems:
            left = [f"{run}: {reason}" for run, reason in self.problems]
            found.append(Sentences("Left out", left))
        return found

    def render(self, format: str = "table") -> str:
        """The report as `table` (text of 100 columns), `md`, `csv` or `json`.

        Raises:
            ConfigError: for any other word.
        """
        if format == "table":
            return as_text(self.blocks())
        if format == "md":
            return as_markdown(self.blocks())
        if format == "csv":
            return as_csv(self.tables)
        if format == "json":
            return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        raise ConfigError(f"--format {printable(format)}: must be one of {', '.join(FORMATS)}")


def make_report(
    roots: Sequence[Path],
    *,
    study: str | None = None,
    baseline: str | None = None,
    runs_dir: Path = Path("runs"),
) -> Report:
    """Report on the finished runs under some directories.

    Args:
        roots: directories of runs, or runs; none stands for `runs_dir`.
        study: take only the runs of this study's plans, by its name or its directory's.
        baseline: the arm that the others are compared with. By default the plan's, else `micro`,
            else the first arm.
        runs_dir: where studies are looked up, beside the roots.

    Raises:
        RecordError: if there is nothing to report, or no such study.
        ConfigError: if the baseline is no arm with a finished run.
    """
    roots = list(roots) or [runs_dir]
    plans, problems = find_plans([*roots, runs_dir])
    only = None
    if study is not None:
        plans = of_study(study, plans, problems, runs_dir)
        only = {run.run for plan in plans for run in plan.runs}
        problems = []
    frame = load(roots, only)
    done = frame.runs[frame.runs["state"] == "done"]
    if done.empty:
        raise RecordError(_nothing_done(roots, study, frame))
    if baseline is not None and baseline not in set(done["arm"]):
        known = ", ".join(sorted(set(done["arm"])))
        raise ConfigError(f"--baseline {printable(baseline)}: no such arm; there are {known}")
    tables = [make_table(frame, int(i), plans, baseline) for i in sorted(set(done["table"]))]
    return Report(
        title=" and ".join(dict.fromkeys(map(_title, plans))) if study is not None else "",
        tables=tuple(tables),
        unfinished=tuple(_unfinished(frame, plans if study is not None else [])),
        problems=(*problems, *frame.problems),
    )


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
