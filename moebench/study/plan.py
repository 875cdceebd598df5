"""Arms x seeds become a plan: every run is composed and checked before the first one starts.

A plan is a file: `runs/studies/<name>-<hash>/plan.json`, a list of runs. A job needs only that file
and its id, so any launcher can start it. Planning imports no torch.
"""

import difflib
import hashlib
import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moebench.config.compose import Composer, to_dict
from moebench.config.identity import arm_hash, label, run_name
from moebench.config.presets import DEFAULT_STUDY
from moebench.config.schema import DataConfig, ExperimentConfig
from moebench.data.batches import check_epochs
from moebench.data.corpus import Corpus, prepare
from moebench.disk import read_json, write_json
from moebench.errors import ConfigError, RecordError, apply_to_all
from moebench.records import SCHEMA_VERSION, cannot_write, printable


@dataclass(frozen=True)
class Job:
    """One run of a plan.

    Attributes:
        id: place of `run` among the names of the plan's runs, so that sweeps that list the same
            runs in another order mean the same ones.
    """

    id: int
    run: str
    arm: str
    arm_hash: str
    seed: int
    overrides: tuple[str, ...]
    config: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """The runs of a study, in the order in which they start: seed by seed, so that pairs fill."""

    name: str
    question: str
    size: str
    baseline: str
    primary: str
    jobs: tuple[Job, ...]

    def job(self, number: int) -> Job:
        """The job of an id; RecordError if there is none."""
        for job in self.jobs:
            if job.id == number:
                return job
        raise RecordError(f"{number}: no such job in the plan {self.slug}")

    @property
    def slug(self) -> str:
        """`<name>-<hash>`; the hash covers the runs and what they are compared for."""
        key = json.dumps([self.baseline, self.primary, sorted(job.run for job in self.jobs)])
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def path(self, runs_dir: Path) -> Path:
        return runs_dir / "studies" / self.slug / "plan.json"

    def write(self, runs_dir: Path) -> Path:
        """Keep the plan among the runs; returns its path."""
        content = {key: value for key, value in asdict(self).items() if key != "jobs"}
        runs = [asdict(job) for job in self.jobs]
        path = self.path(runs_dir)
        try:
            write_json(path, {"schema_version": SCHEMA_VERSION, **content, "runs": runs})
        except OSError as error:
            raise cannot_write(runs_dir, error) from None
        return path


def read_plan(path: Path) -> Plan:
    """The plan in a file that `Plan.write` made."""
    try:
        content = read_json(path)
        jobs = [Job(**{**run, "overrides": tuple(run["overrides"])}) for run in content["runs"]]
        known = ("name", "question", "size", "baseline", "primary")
        return Plan(**{key: content[key] for key in known}, jobs=tuple(jobs))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: is not a plan ({type(error).__name__}: {error})") from None


def find_plan(runs_dir: Path, name: str | None = None) -> Plan:
    """The plan that was swept last, of those of a study or of that name; None takes any.

    Raises:
        RecordError: if there is none, naming the nearest.
    """
    found = {path.parent.name: path for path in runs_dir.glob("studies/*/plan.json")}
    studies = {each: each.rpartition("-")[0] for each in found}
    paths = [path for each, path in found.items() if name in (None, each, studies[each])]
    if paths:
        return read_plan(max(paths, key=lambda path: path.stat().st_mtime))
    if not found or name is None:
        raise RecordError(f"{runs_dir}: no sweep was started here; moebench sweep starts one")
    known = sorted({*found, *studies.values()})
    near = difflib.get_close_matches(name, known, n=3) or sorted(set(studies.values()))
    there = ", ".join(near)
    raise RecordError(printable(f"{name}: no such study in {runs_dir}; there are {there}"))


def make_plan(
    composer: Composer, overrides: Sequence[str], *, progress: Any = None
) -> tuple[Plan, list[Corpus]]:
    """Compose and validate every run that the typed overrides stand for; none has started yet.

    With a sweep among the overrides and no `study=`, the runs are exactly that grid; else those of
    the study, `scope` if none is named: each of its arms with the overrides of the study, of its
    size and those typed, a later one winning over an earlier one. All are in Hydra's sweep grammar,
    so that `seed=0,1,2` gives every arm three seeds.

    Args:
        overrides: as typed, `study=` and `study.*` included.
        progress: called with a line while data is prepared.

    Returns:
        The plan, and the corpora of its runs (one, unless data differs between arms).

    Raises:
        MoebenchError: for all overrides, arms or runs that cannot work.
    """
    own = [each for each in overrides if not _is_study(each)]
    about = [each for each in overrides if _is_study(each)]
    names = [each.removeprefix("study=") for each in about if each.startswith("study=")]
    options = [each for each in about if not each.startswith("study=")]
    if len(names) > 1:
        raise ConfigError(f"study: is set twice ({' and '.join(names)}); keep one")
    if any(composer.is_sweep(each) for each in own) and not about:
        study, cells = None, composer.expand(own)
    else:
        study = composer.study(names[0] if names else DEFAULT_STUDY, options)
        shared = (*study.overrides, *study.sizes.get(study.size, ()))
        of_arm = apply_to_all(lambda arm: composer.expand(shlex.split(arm)), study.arms)
        arms = [job for jobs in of_arm for job in jobs]
        varied = {_key(each) for arm in arms for each in arm}
        for each in own:
            key = next((key for key in varied if f"{_key(each)}.".startswith(f"{key}.")), None)
            if key is not None:
                raise ConfigError(
                    f"{each}: study={study.name} varies {key} itself; leave it out, or sweep over "
                    "it without study="
                )
        composer.expand(own)  # so that an error names what was typed
        cells = [
            cell
            for arm in arms
            for cell in composer.expand(_merge(composer.groups, shared, own, arm))
        ]
    configs = list(zip(cells, apply_to_all(composer.compose, cells), strict=True))
    configs.sort(key=lambda pair: pair[1].seed)  # so that pairs fill one after another
    corpora = _corpora([config for _, config in configs], progress)
    apply_to_all(lambda pair: check_epochs(corpora[_data_key(pair[1].data)], pair[1]), configs)
    jobs: dict[str, Job] = {}
    for cell, config in configs:
        corpus = corpora[_data_key(config.data)]
        run = run_name(config, corpus.content_hash)
        if run not in jobs:  # two ways of writing one treatment are one run
            jobs[run] = Job(
                id=-1,  # given below, when all are known
                run=run,
                arm=label(config),
                arm_hash=arm_hash(config, corpus.content_hash),
                seed=config.seed,
                overrides=tuple(cell),
                config=to_dict(config),
            )
    ids = {run: number for number, run in enumerate(sorted(jobs))}
    labels = [job.arm for job in jobs.values()]
    baseline = study.baseline if study else ("micro" if "micro" in labels else labels[0])
    if baseline not in labels:
        raise ConfigError(
            f"study.baseline={baseline}: is the label of no arm; choose one of "
            f"{', '.join(dict.fromkeys(labels))}"
        )
    plan = Plan(
        name=study.name if study else "sweep",
        question=study.question if study else "",
        size=study.size if study else "",
        baseline=baseline,
        primary=study.primary if study else "valid/nats",
        jobs=tuple(replace(job, id=ids[run]) for run, job in jobs.items()),
    )
    return plan, list(corpora.values())


def _corpora(configs: Sequence[ExperimentConfig], progress: Any) -> dict[str, Corpus]:
    needed = {_data_key(config.data): config.data for config in configs}
    found = apply_to_all(lambda data: prepare(data, progress=progress), needed.values())
    return dict(zip(needed, found, strict=True))


def _data_key(data: DataConfig) -> str:
    """What decides which corpus it is, as far as the config tells."""
    apart = ("homogeneity", "sampling", "temperature", "weights", "mask_documents", "max_epochs")
    return json.dumps({key: value for key, value in asdict(data).items() if key not in apart})


def _is_study(override: str) -> bool:
    return override.startswith(("study=", "study."))


def _key(override: str) -> str:
    return override.split("=", 1)[0]


def _merge(groups: Collection[str], *layers: Iterable[str]) -> list[str]:
    """Overrides of which a later layer wins over an earlier one, its presets over their keys."""
    kept: dict[str, str] = {}
    for layer in layers:
        new = {_key(each): each for each in layer}
        kept = {
            key: each for key, each in kept.items() if key.split(".")[0] not in {*new} & {*groups}
        }
        kept |= new
    return list(kept.values())
