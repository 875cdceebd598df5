"""From records to a report: what the arms do to load, specialisation and perplexity.

The rooms, each importing only those before it: `read/` makes a data frame of records and finds
plans; `infer/` sets the arms of a table beside their baseline; `paper/` compares them with the
paper's findings; `draw/` plots; `show/` prints tables and sentences as text, Markdown, LaTeX, HTML,
JSON, CSV and Parquet. `load` gives the frame to a notebook. No torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moebench.errors import ConfigError, RecordError, remedy
from moebench.plans import Plan
from moebench.records import printable
from moebench.registration import Registration, find
from moebench.report.infer.arms import Table, make_table
from moebench.report.infer.tokens import gains
from moebench.report.paper.judge import judge
from moebench.report.paper.overlap import overlaps
from moebench.report.paper.verdicts import Verdict
from moebench.report.read.frame import Frame, Problem
from moebench.report.read.frame import load as load_frame
from moebench.report.read.interim import Interim, interim
from moebench.report.read.reached import at_its_look
from moebench.report.read.studies import damaged, find_wanted
from moebench.report.read.unfinished import Unfinished, nothing_done, unfinished
from moebench.report.show import trials
from moebench.report.show.blocks import Block, Heading, Sentences
from moebench.report.show.brief import brief
from moebench.report.show.diff import compare_two
from moebench.report.show.export import as_csv, as_dict, as_parquet, write
from moebench.report.show.formats import as_latex, as_markdown, as_text
from moebench.report.show.table import Shown, blocks

if TYPE_CHECKING:
    from rich.text import Text

    from moebench.report.draw.chart import Plot, Plots
    from moebench.report.show.page import Section

__all__ = ["FORMATS", "Report", "Runs", "compare_two", "load", "make_report", "write"]

FORMATS = ("table", "md", "csv", "json", "latex", "parquet")


@dataclass(frozen=True)
class Report:
    """A report on some records.

    Attributes:
        title: the study and its question; "" for a report on no study.
        tables: one for each set of runs that may be compared.
        verdicts: of each table, what it says of the paper's findings.
        unfinished: runs that failed, stopped, wait, are running or have not begun.
        problems: records and plans that could not be used.
        frame: what all of it was made from.
        shown: what the reader asked for.
        plans: of the runs.
    """

    title: str
    tables: tuple[Table, ...]
    verdicts: tuple[tuple[Verdict, ...], ...]
    unfinished: tuple[Unfinished, ...]
    problems: tuple[Problem, ...]
    frame: Frame
    shown: Shown = Shown()
    plans: tuple[Plan, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The object that `moebench report --json` prints."""
        return as_dict(
            self.tables,
            self.verdicts,
            self.unfinished,
            (*self.problems, *self.frame.damaged),
            self.shown.metrics,
        )

    def plots(self, table: Table) -> "list[Plot]":
        """The plots of one of the tables.

        Raises:
            RecordError: if the metrics of a run at its logged steps are damaged.
        """
        from moebench.report.draw.plots import plots

        return plots(table, self.frame)

    def _repr_markdown_(self) -> str:
        """What a notebook shows: the whole report, without plots."""
        return self.render("md")

    def page(self, command: str) -> str:
        """The report with its plots as one HTML file; `command` is what was typed to make it."""
        from moebench.report.show.page import content, whole

        return whole(self.title, content(self.title, self.sections(), self.plans, command))

    def sections(self) -> "list[Section]":
        """The tables with their plots, and what is missing, for the page."""
        from moebench.report.show.page import Section

        paths = {row["run"]: row["path"] for row in self.frame.rows()}
        sections = [
            Section(self._blocks(table, verdicts), self.plots(table), table, paths)
            for table, verdicts in zip(self.tables, self.verdicts, strict=True)
        ]
        missing = self._missing()
        return [*sections, Section(missing)] if missing else sections

    def blocks(self) -> list[Block]:
        """The report in order: title, tables with their sentences, what is missing."""
        content: list[Block] = [Heading(self.title)] if self.title else []
        for table, verdicts in zip(self.tables, self.verdicts, strict=True):
            content += self._blocks(table, verdicts)
        return content + self._missing()

    def _blocks(self, table: Table, verdicts: Sequence[Verdict]) -> list[Block]:
        own = blocks(table, verdicts, self.shown, overlaps(table, self.frame))
        return [*own, *trials.grids(self.plans, table)]

    def _missing(self) -> list[Block]:
        missing = {
            "Not finished": self.unfinished,
            "Left out": self.problems,
            "Damaged": self.frame.damaged,
        }
        return [Sentences(title, [*map(str, runs)]) for title, runs in missing.items() if runs]

    def brief(self, width: int = 80) -> "list[Text]":
        """The report in at most 40 lines: the answers and one line an arm."""
        unfinished = [str(run) for run in self.unfinished]
        left_out = [f"left out: {problem}" for problem in self.problems]
        left_out += [f"damaged: {problem}" for problem in self.frame.damaged]
        return brief(self.title, self.tables, unfinished + left_out, width)

    def render(self, format: str = "table", width: int = 100) -> str:
        """The report as `table` (text, `width` columns), `md`, `latex`, `csv` or `json`.

        Raises:
            ConfigError: for any other format.
        """
        if format == "table":
            return as_text(self.blocks(), width)
        if format == "md":
            return as_markdown(self.blocks())
        if format == "latex":
            return as_latex(self.blocks())
        if format == "csv":
            return as_csv(self.tables, self.shown.metrics)
        if format == "json":
            return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        raise ConfigError(f"--format {printable(format)}: must be one of {', '.join(FORMATS)}")

    def encode(self, format: str = "table") -> bytes:
        """`render` as bytes for a file, and `parquet` too, which holds what `csv` does."""
        if format == "parquet":
            return as_parquet(self.tables, self.shown.metrics)
        return self.render(format).encode()


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
    look: int | None = None,
) -> Report:
    """Report on the runs under some directories, on those of an unfinished study meanwhile.

    Args:
        roots: directories of runs, or runs; none stands for `runs_dir`.
        study: take only the runs of this study's plans, by its name or its folder's.
        baseline: the arm that the others are compared with. By default the plan's, else `micro`,
            else the first arm.
        runs_dir: where studies are looked up, beside the roots.
        where: conditions `key=value` or `key=value,value` that the runs must meet: keys of the
            config, `arm` (with * and ?) and `seed`.
        by: keys in which runs of one table are equal, too.
        metrics: names, with * and ?, of the only metrics to show.
        sort: a metric by whose mean arms are sorted, the largest first after a "-".
        at: a step at which the runs were evaluated, in place of their end.
        per_domain: whether to add the nats of each domain.
        look: the number of that at which studies that end by rule are reported, whatever seeds have
            begun; None: the one that each has reached.

    Raises:
        RecordError: if there is nothing to report, or no such study.
        ConfigError: if no arm with a finished run is called `baseline`, or if a condition, key,
            metric or step does not exist.
    """
    roots = list(roots) or [runs_dir]
    plans, problems = find_wanted([*roots, runs_dir], study, runs_dir)
    title = _title(plans if study is not None else [], at)
    whole, plans = tuple(plans), [at_its_look(plan, look) for plan in plans]
    only = None if study is None else _runs(plans)
    frame = load_frame(roots, only, where=where, by=by).checked()
    frame = replace(frame, damaged=(*damaged(plans), *frame.damaged))
    if at is not None:
        frame = frame.at(at)
    made = _parts(frame, plans, at)
    if not made:
        raise RecordError(nothing_done(roots, study, frame, where, only))
    _check_baseline(baseline, _seen(made, "arm"))
    known = sorted(_seen(made, "metric"))
    shown = Shown(tuple(_chosen(metrics, known)), per_domain)
    registered = find([*roots, runs_dir])
    judged = [_judged(part, plans, baseline, registered) for part in made]
    tables, verdicts = [table for table, _ in judged], tuple(verdict for _, verdict in judged)
    tables = tables if sort is None else _sorted(tables, sort, known)
    left = unfinished(frame, plans if study is not None else [])
    problems = (*problems, *frame.problems)
    return Report(title, tuple(tables), verdicts, tuple(left), problems, frame, shown, whole)


def _sorted(tables: Sequence[Table], sort: str, known: Sequence[str]) -> list[Table]:
    """Tables by the mean of a metric; ConfigError where no run has it."""
    _chosen([sort.removeprefix("-")], known, "--sort")
    return [table.sorted_by(sort) for table in tables]


@dataclass(frozen=True)
class Runs(Frame):
    """Runs in a notebook: a frame that can be compared and drawn.

    Attributes:
        source: what `load` read, as `make_report` takes it.
    """

    source: Mapping[str, Any] = field(default_factory=dict)

    def report(self, **choices: Any) -> Report:
        """The report on the same records as they are now, of all steps.

        Args:
            choices: `baseline`, `metrics`, `sort`, `at` and `per_domain` of `make_report`.
        """
        return make_report(**self.source, **choices)

    def plots(self, **choices: Any) -> "Plots":
        """The plots of that report, the most important of each table first."""
        from moebench.report.draw.chart import Plots

        made = self.report(**choices)
        return Plots(plot for table in made.tables for plot in made.plots(table))


def load(
    roots: Path | str | Sequence[Path | str] = "runs",
    *,
    study: str | None = None,
    where: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Runs:
    """Runs as tidy data frames, for a notebook: `load().metrics`, `load("runs").curves()`.

    Args:
        roots: directories of runs, or runs.
        study: take only the runs of this study's plans, which lie in the first of the roots.
        where: conditions `key=value` or `key=value,value` that the runs must meet: keys of the
            config, `arm` (with * and ?) and `seed`.
        by: keys in which runs of one table are equal, too.

    Raises:
        RecordError: if there is no run, or no such study.
    """
    paths = [Path(roots)] if isinstance(roots, Path | str) else [Path(root) for root in roots]
    only = None if study is None else _runs(find_wanted(paths, study, paths[0])[0])
    source = {"roots": paths, "study": study, "runs_dir": paths[0], "where": where, "by": by}
    return Runs(**vars(load_frame(paths, only, where=where, by=by)), source=source)


def _title(plans: Sequence[Plan], at: int | None) -> str:
    title = " and ".join(dict.fromkeys(plan.title for plan in plans))
    if at is None:
        return title
    return f"{title} (at step {at})" if title else f"At step {at}"


class Part(NamedTuple):
    """The metrics of one table, and where they are taken if its study has not ended."""

    frame: Frame
    table: int
    interim: Interim | None


def _parts(frame: Frame, plans: Sequence[Plan], at: int | None) -> list[Part]:
    """The tables that hold metrics."""
    of_table: dict[int, list[Mapping[str, Any]]] = {}
    for row in frame.rows():
        of_table.setdefault(row["table"], []).append(row)
    parts = [_part(frame, index, of_table[index], plans, at) for index in sorted(of_table)]
    return [part for part in parts if part.table in part.frame.metrics["table"].unique()]


def _judged(
    part: Part, plans: Sequence[Plan], baseline: str | None, known: Sequence[Registration]
) -> tuple[Table, tuple[Verdict, ...]]:
    """A table with its decisions and gains, and its verdicts.

    Args:
        known: preregistrations.
    """
    made = make_table(part.frame, part.table, plans, baseline, part.interim, known)
    table, verdicts = judge(made)
    learning = part.frame.learning_until(table.step)
    return replace(table, gains=gains(table, learning)), verdicts


def _part(
    frame: Frame,
    index: int,
    rows: Sequence[Mapping[str, Any]],
    plans: Sequence[Plan],
    at: int | None,
) -> Part:
    found = interim(frame, rows, plans)
    if found is None:
        return Part(frame, index, None)
    where, meanwhile = found
    if at is None:
        return Part(meanwhile, index, where)
    measured = {*frame.metrics["run"].unique()}
    seeds = {row["seed"] for row in rows if row["run"] in measured}
    waiting = {*where.seeds, *where.waiting} - seeds
    chosen = replace(
        where, step=at, seeds=tuple(sorted(seeds)), waiting=tuple(sorted(waiting)), chosen=True
    )
    return Part(frame, index, chosen)


def _seen(parts: Sequence[Part], column: str) -> set[str]:
    """The arms or metrics of some tables."""
    return {name for part in parts for name in part.frame.metrics[column].unique()}


def _check_baseline(baseline: str | None, arms: set[str]) -> None:
    if baseline is not None and baseline not in arms:
        known = ", ".join(sorted(arms))
        raise ConfigError(f"--baseline {printable(baseline)}: no such arm; there are {known}")


def _runs(plans: Sequence[Plan]) -> set[str]:
    return {job.run for plan in plans for job in plan.jobs}


def _chosen(patterns: Sequence[str], known: Sequence[str], option: str = "--metrics") -> list[str]:
    """The metrics that match some patterns, in the order of the patterns."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            groups = sorted({f"{name.partition('/')[0]}/*" for name in known})
            near = remedy(
                pattern, groups if "*" in pattern else known, f"there are {', '.join(groups)}"
            )
            raise ConfigError(
                f"{option} {printable(pattern)}: these runs hold no such metric; {near}"
            )
        chosen |= dict.fromkeys(names)
    return list(chosen)
