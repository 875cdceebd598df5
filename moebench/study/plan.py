"""Arms x seeds become a plan: every run is composed and checked before the first one starts.

A plan is a file: `runs/studies/<name>-<hash>/plan.json`, a list of runs. A job needs only that file
and its id, so any launcher can start it. Planning imports no torch.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from moebench.catalogue import METRICS, find
from moebench.config.compose import Composer, to_dict
from moebench.config.identity import arm_hash, label, run_name
from moebench.config.schema import DataConfig, ExperimentConfig, StudyConfig
from moebench.config.treatment import Treatment
from moebench.data.batches import check_epochs
from moebench.data.corpus import Corpus, prepare
from moebench.data.maps import check_map
from moebench.errors import ConfigError, MoebenchError, apply_to_all, nearest
from moebench.plans import GRID, PRIMARY, SECONDARY, Job, Plan, Searched
from moebench.records import printable
from moebench.study.axes import NO_AXES, Axes, arms_of, cells_of
from moebench.study.labels import distinct
from moebench.study.tuned import RUNS, Cell, without_seed


def make_plan(
    composer: Composer,
    overrides: Sequence[str],
    axes: Axes = NO_AXES,
    *,
    runs_dir: Path = RUNS,
    progress: Any = None,
) -> Plan:
    """Compose and check every run that the overrides describe; start none.

    A sweep without `study=` is exactly its grid. Else the runs are the arms of the study, `scope`
    by default. Each arm takes the overrides of the study, then those of its size, then the typed
    ones; a later override wins. All may be sweeps in Hydra's grammar: with `seed=0,1,2`, every arm
    has three seeds.

    Args:
        overrides: as typed, `study=` and `study.*` included.
        axes: what was typed beside them.
        runs_dir: that holds the trials of a study whose arms have ranges.
        progress: called with a line while data is prepared.

    Raises:
        MoebenchError: for all overrides, arms or runs that cannot work.
    """
    study, cells, how = cells_of(composer, overrides, axes, runs_dir)
    configs = list(zip(cells, apply_to_all(composer.compose, cells), strict=True))
    configs.sort(key=lambda pair: pair[1].seed)  # so that pairs fill one after another
    corpora = _corpora([config for _, config in configs], progress)
    apply_to_all(lambda pair: _check_data(pair[1], corpora[data_key(pair[1].data)]), configs)
    numbered = _numbered(configs, corpora)
    jobs = distinct(numbered, of_grid=study is None)
    study = study or _grid(axes.name or GRID, jobs)
    labels = [*dict.fromkeys(job.label for job in jobs)]
    plan = Plan(
        name=study.name,
        question=study.question,
        size=study.size,
        baseline=_followed(composer, overrides, study.baseline, labels),
        primary=_metrics("primary", [study.primary])[0],
        secondary=_metrics("secondary", study.secondary),
        order=tuple(study.order),
        average_twin=study.average_twin,
        typed=(*overrides, *axes.options()),
        searches=(searches := tuple(_searches(jobs, how))),
        tuned_by=_tuned_by(overrides, searches),
        jobs=tuple(jobs),
    )
    if plan.baseline_hash() is None:
        word = shlex.quote(f"study.baseline={json.dumps(labels[0])}")
        raise ConfigError(
            f"study.baseline={study.baseline}: is the label of no arm; choose one of "
            f"{', '.join(labels)}, as in {word}"
        )
    return plan


def _followed(
    composer: Composer, overrides: Sequence[str], baseline: str, labels: Sequence[str]
) -> str:
    """The label of a baseline's arm where typed words have added to it.

    With `router=sigmoid`, `micro` is `micro sigmoid`; with `experiment=deepseek-v3`, it is `micro
    layers=sum + bias sigmoid`. The arm is the one that has the label if nothing is typed.
    """
    if baseline in labels:
        return baseline
    for plain, typed in arms_of(composer, overrides):
        if _label(composer, plain) == baseline:
            names = {_label(composer, cell) for cell in typed}
            name = names.pop() if len(names) == 1 else ""
            if name in labels and {*baseline.split()} <= {*name.split()}:
                return name
    return baseline


def _label(composer: Composer, cell: Cell) -> str:
    """The label of a run; "" where it needs a word that is typed."""
    try:
        return label(Treatment.of(composer.compose(cell)))
    except MoebenchError:
        return ""


def _grid(name: str, jobs: Sequence[Job]) -> StudyConfig:
    """What stands for the study of a grid, which declares none."""
    labels = [job.label for job in jobs]
    baseline = "micro" if "micro" in labels else labels[0]
    return StudyConfig(
        name=name, size="", baseline=baseline, primary=PRIMARY, secondary=[*SECONDARY]
    )


def _metrics(key: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names of a study's metrics; ConfigError for one that nobody declared."""
    for name in names:
        if find(name) is None:
            near = nearest(name, METRICS)
            remedy = f"did you mean {' or '.join(near)}?" if near else "see docs/metrics.md"
            raise ConfigError(f"study.{key}={printable(name)}: is no metric; {remedy}")
    return tuple(names)


def _searches(jobs: Sequence[Job], how: Mapping[Cell, Searched]) -> Iterator[Searched]:
    """The searches that chose the values of some jobs, each with the arms that have them."""
    arms: dict[Searched, dict[str, None]] = {}
    for job in jobs:
        if job.overrides in how:
            arms.setdefault(how[job.overrides], {})[job.arm] = None
    return (search._replace(arms=(*names,)) for search, names in arms.items())


def _tuned_by(overrides: Sequence[str], searches: Sequence[Searched]) -> tuple[str, ...]:
    """The words after `moebench` that make the trials of a plan."""
    if not searches:
        return ()
    return ("tune", *without_seed(overrides), "--trials", str(searches[0].trials))


def _check_data(config: ExperimentConfig, corpus: Corpus) -> None:
    """Raise the errors of a config that only its data can show."""
    check_epochs(corpus, config)
    check_map(config, corpus)


def _job(cell: Sequence[str], config: ExperimentConfig, corpus: Corpus) -> Job:
    treatment = Treatment.of(config)
    return Job(
        id=-1,  # set when all are known
        run=run_name(treatment, corpus.content_hash),
        arm=label(treatment),
        arm_hash=arm_hash(treatment, corpus.content_hash),
        seed=config.seed,
        overrides=tuple(cell),
        config=to_dict(config),
    )


def _numbered(
    configs: Sequence[tuple[Cell, ExperimentConfig]], corpora: Mapping[str, Corpus]
) -> list[Job]:
    """The jobs of some configs, in their order; two ways of writing one treatment are one."""
    by_run: dict[str, Job] = {}
    for cell, config in configs:
        job = _job(cell, config, corpora[data_key(config.data)])
        by_run.setdefault(job.run, job)
    ids = {run: number for number, run in enumerate(sorted(by_run))}
    return [replace(job, id=ids[run]) for run, job in by_run.items()]


def _corpora(configs: Sequence[ExperimentConfig], progress: Any) -> dict[str, Corpus]:
    needed = {data_key(config.data): config.data for config in configs}
    corpora = apply_to_all(lambda data: prepare(data, progress=progress), needed.values())
    return dict(zip(needed, corpora, strict=True))


def data_key(data: DataConfig) -> str:
    """The keys that decide which corpus a config uses."""
    of_runs = ("homogeneity", "sampling", "temperature", "weights", "mask_documents", "max_epochs")
    return json.dumps({key: value for key, value in asdict(data).items() if key not in of_runs})
