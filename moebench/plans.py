"""A study's plan on disk: its runs, the config of each, and which comparison is the point.

A plan is the file `runs/studies/<name>-<hash>/plan.json`. A job needs only that file and its id, so
any launcher can start it. `moebench.study` makes plans; the report reads them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from moebench.config.interval import Interval
from moebench.contents import FLAG, NAME, NUMBER, TEXT, WORD, each, fields, table, whole
from moebench.disk import MAX_JSON_BYTES, read_bytes, read_checked, write_json
from moebench.errors import ConfigError, RecordError, nearest
from moebench.looks import FEWEST, PARTS
from moebench.nested import beyond, in_common, joined
from moebench.record_files import SEED, plain
from moebench.records import cannot_write, printable
from moebench.seals import is_sealed, refuse_link, refuse_links, with_digest
from moebench.step_costs import Cost

PRIMARY = "valid/nats"  # the endpoint of a study that names none
GRID = "sweep"  # the name of a grid that has none of its own
SECONDARY = ("router/replay_cost", "load/max_vio_micro")  # of runs of no study, and of a grid
EDITED = "was edited after its sweep; restore it, or sweep again"
ARM = re.compile(rb'"arm_hash":\s*"([^"]*)"')  # in the file of a plan
ORDER = "study.order="  # begins the override that names the findings of a study


@dataclass(frozen=True)
class Job:
    """One run of a plan.

    Attributes:
        id: place of `run` among the names of the plan's runs, so that sweeps that list the same
            runs in another order mean the same ones.
        arm: the label of its arm; unique among those of a grid.
        overrides: as `moebench train` takes them.
        config: the resolved config.
        differs: overrides in which the arms that share its `label` differ; "" if none does.
    """

    id: int
    run: str
    arm: str
    arm_hash: str
    seed: int
    overrides: tuple[str, ...]
    config: dict[str, Any] = field(repr=False)
    differs: str = ""

    @property
    def label(self) -> str:
        """What its arm is called on its own, as in the name of its record."""
        return self.arm.removesuffix(self.differs).rstrip()

    @property
    def title(self) -> str:
        """The name of its record, and what that name does not tell of its arm."""
        return f"{self.run}  {self.differs}".rstrip()

    @property
    def steps(self) -> int:
        return self.config["train"]["steps"]


class Searched(NamedTuple):
    """How a search chose the values of arms, by trials that no report shows (docs/tuning.md).

    Attributes:
        name: of the search, as in `runs/tuning/<name>.journal`.
        arms: those with its values.
        ranges: overrides `key=low..high`.
        failed: how many of the trials have no result.
        seeds: of each trial.
        values: the overrides of the best trial.
        result: its mean `tune/nats`.
        journal: SHA-256 of the journal of trials.
    """

    name: str
    arms: tuple[str, ...]
    ranges: tuple[str, ...]
    trials: int
    failed: int
    seeds: tuple[int, ...]
    values: str
    result: float
    journal: str

    @staticmethod
    def shares(ranges: Sequence[str], values: str) -> dict[str, float]:
        """Where the value of each key lies in its range, from 0 to 1.

        Raises ConfigError, ValueError or KeyError for texts that no search has.
        """
        known = dict(word.split("=", 1) for word in values.split())
        intervals = filter(None, map(Interval.read, ranges))
        return {each.key: each.share(float(known[each.key])) for each in intervals}


@dataclass(frozen=True)
class Plan:
    """The runs of a study, in the order in which they start: seed by seed, so that pairs fill.

    Attributes:
        name, question, size: of the study.
        baseline: the label of an arm.
        primary: the name of a metric.
        secondary: names of metrics, whose tests share a level of their own.
        order: names of findings, in the order in which they are tested.
        average_twin: whether differences are to the mean of the baseline and its A/A twin.
        typed: words after `moebench sweep` that make this plan; None where they are not known.
        most_seeds: of a study that ends by rule (`moebench.looks`); None: it trains all of them.
        margin: below which its first finding counts as no difference, in nats a byte, or in the
            unit of another primary metric; of a slope, for what the finding says, as for each
            doubling; None: there is none.
        folder: where it was read from; None for a plan that was not.
        searches: that chose values of arms.
        tuned_by: words after `moebench` that make their trials.
        costs: by arm hash, where the study was timed and they were read (`step_costs.read_costs`).
        bad_costs: why its costs cannot be read; "" if nothing is wrong.
        edited: whether the file that it was read from is not what was written.
    """

    name: str
    question: str
    size: str
    baseline: str
    primary: str
    jobs: tuple[Job, ...]
    folder: Path | None = field(default=None, compare=False, repr=False)
    secondary: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    average_twin: bool = False
    typed: tuple[str, ...] | None = None
    searches: tuple[Searched, ...] = ()
    tuned_by: tuple[str, ...] = ()
    most_seeds: int | None = None
    margin: float | None = None
    costs: dict[str, Cost] = field(default_factory=dict, compare=False, repr=False)
    bad_costs: str = field(default="", compare=False, repr=False)
    edited: bool = field(default=False, compare=False, repr=False)

    def job(self, number: int) -> Job:
        """The job of an id; RecordError if there is none."""
        for job in self.jobs:
            if job.id == number:
                return job
        raise RecordError(f"{number}: no such job in the plan {self.slug}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs, in the order in which they are trained."""
        return tuple(sorted({job.seed for job in self.jobs}))

    def first(self, seeds: int) -> "Plan":
        """The part with so many seeds."""
        kept = {*self.seeds[:seeds]}
        return replace(self, jobs=tuple(job for job in self.jobs if job.seed in kept))

    def in_order(self, order: Sequence[str]) -> "Plan":
        """The plan in an order of findings that its preset does not declare, and words for it."""
        words = None if self.typed is None else (*self.typed, f"{ORDER}[{','.join(order)}]")
        return replace(self, order=tuple(order), typed=words)

    @property
    def order_is_typed(self) -> bool:
        """Whether the words that make it name its order of findings."""
        return any(word.startswith(ORDER) for word in self.typed or ())

    @property
    def title(self) -> str:
        """The name and the question of the study, for a heading."""
        return printable(f"Study {self.name}" + (f": {self.question}" if self.question else ""))

    def baseline_hash(self) -> str | None:
        """The first arm under the baseline's label; None if the plan has no such arm."""
        jobs = (job for job in self.jobs if self.baseline in (job.arm, job.label))
        return next((job.arm_hash for job in jobs), None)

    @property
    def slug(self) -> str:
        """`<name>-<hash>`; the hash covers the runs and what they are compared for."""
        key = json.dumps([self.baseline, self.primary, sorted(job.run for job in self.jobs)])
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def path(self, runs_dir: Path) -> Path:
        return runs_dir / "studies" / self.slug / "plan.json"

    def write(self, runs_dir: Path) -> Path:
        """Write the plan among the runs, with its SHA-256; returns its path.

        Raises RecordError if it cannot be written, or would come elsewhere by a link.
        """
        about: dict[str, Any] = {key: getattr(self, key) for key in _TEXTS}
        about |= {key: list(getattr(self, key)) for key in _LISTS}
        about["average_twin"] = self.average_twin
        about |= {} if self.typed is None else {"typed": list(self.typed)}
        if self.searches:
            about["searches"] = [each._asdict() for each in self.searches]
            about["tuned_by"] = list(self.tuned_by)
        about |= {key: getattr(self, key) for key in _RULE if getattr(self, key) is not None}
        shared = in_common([job.config for job in self.jobs])
        runs = [vars(job) | {"config": beyond(job.config, shared)} for job in self.jobs]
        path = self.path(runs_dir)
        content = with_digest({**about, "shared": shared, "runs": runs})
        for folder in (path.parents[1], path.parent):
            refuse_link(folder)
        refuse_links(path.parent, "the study")
        try:
            write_json(path, content)
        except OSError as error:
            raise cannot_write(runs_dir, error) from None
        return path


_TEXTS = ("name", "question", "size", "baseline", "primary")
_RULE = ("most_seeds", "margin")  # by which a study ends, if it does
_LISTS = ("secondary", "order")  # of names; plans of an earlier version hold neither, nor `typed`


def read_plan(path: Path, *, unedited: bool = False) -> Plan:
    """The plan in a file that `Plan.write` made.

    Args:
        unedited: whether it must be to the letter what was written.

    Raises:
        RecordError: if the file is missing or damaged, with the first thing that is wrong.
    """
    content, wrong = read_checked(path, _first_wrong)
    if wrong:
        raise RecordError(f"{path}: is not a plan ({wrong}); restore it, or sweep again")
    if unedited and not is_sealed(content):
        raise RecordError(f"{path}: {EDITED}")
    return Plan(
        **{key: content[key] for key in _TEXTS},
        jobs=tuple(_job(run, content.get("shared", {})) for run in content["runs"]),
        folder=path.parent,
        secondary=tuple(content.get("secondary", ())),
        order=tuple(content.get("order", ())),
        average_twin=content.get("average_twin", False),
        typed=tuple(content["typed"]) if "typed" in content else None,
        searches=tuple(map(_searched, content.get("searches", ()))),
        tuned_by=tuple(content.get("tuned_by", ())),
        **{key: content[key] for key in _RULE if key in content},
        edited="sha256" in content and not is_sealed(content),  # earlier versions sealed none
    )


RUN = {
    "id": whole(),
    "run": NAME,
    "arm": WORD,
    "arm_hash": WORD,
    "seed": SEED,
    "overrides": each(TEXT),
    "config": table(plain),
}
SEARCH = {
    "name": NAME,
    "arms": each(TEXT),
    "ranges": each(TEXT),
    "trials": whole(1),
    "failed": whole(),
    "seeds": each(SEED),
    "values": TEXT,
    "result": NUMBER,
    "journal": TEXT,
}


def _search(value: Any, place: str) -> str:
    """A search, whose values are numbers for the keys of its ranges."""
    if wrong := fields(SEARCH)(value, place):
        return wrong
    try:
        Searched.shares(value["ranges"], value["values"])
    except (ConfigError, ValueError, KeyError):
        return f"{place} has no value for each of its ranges"
    empty = next((key for key in ("arms", "seeds") if not value[key]), "")
    return empty and f"{place}.{empty} is empty"


PLAN = fields(
    {**dict.fromkeys(_TEXTS, TEXT), "name": NAME, "runs": each(fields(RUN, {"differs": TEXT}))},
    # missing in those of earlier versions
    {
        **dict.fromkeys((*_LISTS, "typed", "tuned_by"), each(TEXT)),
        "searches": each(_search),
        "average_twin": FLAG,
        "most_seeds": whole(FEWEST),
        "margin": NUMBER,
        "shared": table(plain),
    },
)
CONFIG = fields({"train": fields({"steps": whole()})})


def _job(run: Mapping[str, Any], shared: Mapping[str, Any]) -> Job:
    values = {key: run[key] for key in (*RUN, "differs") if key in run}
    own = {"overrides": tuple(run["overrides"]), "config": joined(shared, run["config"])}
    return Job(**values | own)


def _searched(search: Mapping[str, Any]) -> Searched:
    values = {key: search[key] for key in SEARCH}
    values |= {key: tuple(values[key]) for key in ("arms", "ranges", "seeds")}
    return Searched(**values)


def _first_wrong(content: Mapping[str, Any], place: str) -> str:
    """What a plan lacks, or holds of a wrong type; "" if nothing."""
    if wrong := PLAN(content, place):
        return wrong
    ids = [run["id"] for run in content["runs"]]
    faults = {
        "runs is empty": not ids,
        "two runs have one id": len({*ids}) < len(ids),  # a job is started by its id
        f"most_seeds is not a multiple of {PARTS[0]}": content.get("most_seeds", 0) % PARTS[0] > 0,
    }
    if wrong := next((fault for fault, found in faults.items() if found), ""):
        return wrong
    configs = (joined(content.get("shared", {}), run["config"]) for run in content["runs"])
    wrong = (CONFIG(config, f"runs[{number}].config") for number, config in enumerate(configs))
    return next(filter(None, wrong), "")


def study_of(folder: Path) -> str:
    """The name of the study whose plan lies in a folder."""
    return folder.name.rpartition("-")[0]


def find_plan_files(runs_dir: Path) -> list[Path]:
    """The files of all plans of a directory of runs, whether they can be read or not."""
    return sorted(runs_dir.glob("studies/*/plan.json"))


def find_ruled(runs_dir: Path, arms: Set[str]) -> list[Plan]:
    """The plans that end by rule and have one of some arms, by arm hash; not damaged ones.

    The others are told by words of their files, since to read a plan takes 100 times as long.
    """
    wanted, found = {arm.encode() for arm in arms}, []
    for path in find_plan_files(runs_dir):
        with suppress(OSError, ValueError, RecordError):
            text = read_bytes(path, MAX_JSON_BYTES)
            if b'"most_seeds"' in text and not wanted.isdisjoint(ARM.findall(text)):
                found.append(read_plan(path))
    return [plan for plan in found if plan.most_seeds]


def find_plan(runs_dir: Path, name: str | None = None) -> Plan:
    """The plan that was swept last, of those of a study or of that name; None takes any.

    Raises:
        RecordError: if there is none, naming the nearest.
    """
    paths = find_plan_files(runs_dir)
    chosen = [path for path in paths if name in (None, path.parent.name, study_of(path.parent))]
    if chosen:
        return read_plan(max(chosen, key=lambda path: path.stat().st_mtime))
    if not paths or name is None:
        raise RecordError(f"{runs_dir}: no sweep was started here; moebench sweep starts one")
    studies = sorted({study_of(path.parent) for path in paths})
    known = sorted({*studies, *(path.parent.name for path in paths)})
    near = ", ".join(nearest(name, known) or studies)
    raise RecordError(printable(f"{name}: no such study in {runs_dir}; there are {near}"))
