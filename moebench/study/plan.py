"""Arms x seeds become a plan: every run is composed and checked before the first one starts.

A plan is a file: `runs/studies/<name>-<hash>/plan.json`, a list of runs. A job needs only that file
and its id, so any launcher can start it. Planning imports no torch.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from moebench.config.compose import Composer, to_dict
from moebench.config.identity import arm_hash, label, run_name
from moebench.config.presets import DEFAULT_STUDY
from moebench.config.schema import DataConfig, ExperimentConfig, StudyConfig
from moebench.config.treatment import Treatment
from moebench.data.batches import check_epochs
from moebench.data.corpus import Corpus, prepare
from moebench.data.maps import check_map
from moebench.errors import ConfigError, apply_to_all
from moebench.plans import PRIMARY, Job, Plan


def make_plan(
    composer: Composer, overrides: Sequence[str], *, progress: Any = None
) -> tuple[Plan, list[Corpus]]:
    """Compose and check every run that the overrides describe; start none.

    A sweep without `study=` is exactly its grid. Else the runs are the arms of the study, `scope`
    by default. Each arm takes the overrides of the study, then those of its size, then the typed
    ones; a later override wins. All may be sweeps in Hydra's grammar: with `seed=0,1,2`, every arm
    has three seeds.

    Args:
        overrides: as typed, `study=` and `study.*` included.
        progress: called with a line while data is prepared.

    Returns:
        The plan, and the corpora of its runs (one, unless data differs between arms).

    Raises:
        MoebenchError: for all overrides, arms or runs that cannot work.
    """
    study, cells = _cells(composer, overrides)
    configs = list(zip(cells, apply_to_all(composer.compose, cells), strict=True))
    configs.sort(key=lambda pair: pair[1].seed)  # so that pairs fill one after another
    corpora = _corpora([config for _, config in configs], progress)
    apply_to_all(lambda pair: _check_data(pair[1], corpora[_data_key(pair[1].data)]), configs)
    jobs: dict[str, Job] = {}
    for cell, config in configs:
        job = _job(cell, config, corpora[_data_key(config.data)])
        jobs.setdefault(job.run, job)  # two ways of writing one treatment are one run
    ids = {run: number for number, run in enumerate(sorted(jobs))}
    labels = [job.arm for job in jobs.values()]
    if study is None:
        baseline = "micro" if "micro" in labels else labels[0]
        study = StudyConfig(name="sweep", size="", baseline=baseline, primary=PRIMARY)
    if study.baseline not in labels:
        raise ConfigError(
            f"study.baseline={study.baseline}: is the label of no arm; choose one of "
            f"{', '.join(dict.fromkeys(labels))}"
        )
    plan = Plan(
        name=study.name,
        question=study.question,
        size=study.size,
        baseline=study.baseline,
        primary=study.primary,
        order=tuple(study.order),
        average_twin=study.average_twin,
        jobs=tuple(replace(job, id=ids[run]) for run, job in jobs.items()),
    )
    return plan, list(corpora.values())


def _cells(
    composer: Composer, overrides: Sequence[str]
) -> tuple[StudyConfig | None, list[tuple[str, ...]]]:
    """The study that the overrides name, None for a grid, and the overrides of each run."""
    of_runs = [word for word in overrides if not _is_study(word)]
    of_study = [word for word in overrides if _is_study(word)]
    names = [word.removeprefix("study=") for word in of_study if word.startswith("study=")]
    options = [word for word in of_study if not word.startswith("study=")]
    if len(names) > 1:
        raise ConfigError(f"study: is set twice ({' and '.join(names)}); keep one")
    if any(map(composer.is_sweep, of_runs)) and not of_study:
        return None, composer.expand(of_runs)
    study = composer.study(names[0] if names else DEFAULT_STUDY, options)
    shared = (*study.overrides, *study.sizes.get(study.size, ()))
    of_arm = apply_to_all(lambda arm: composer.expand(shlex.split(arm)), study.arms)
    arms = [cell for cells in of_arm for cell in cells]
    _check_varied(study, of_runs, arms, named=bool(names))
    composer.expand(of_runs)  # so that an error names what was typed
    merged = [_merge(composer, shared, of_runs, arm) for arm in arms]
    return study, [cell for words in merged for cell in composer.expand(words)]


def _check_varied(
    study: StudyConfig, typed: Sequence[str], arms: Sequence[tuple[str, ...]], *, named: bool
) -> None:
    """Refuse a typed override of a key that differs between the arms of the study.

    Args:
        named: whether the study was typed.
    """
    varied = {_key(word) for arm in arms for word in arm}
    for word in typed:
        key = next((key for key in varied if f"{_key(word)}.".startswith(f"{key}.")), None)
        if key is not None and not named:
            raise ConfigError(
                f"{word}: is one value, where a sweep needs several, as in {key}=A,B; moebench "
                f"train makes one run (without a list of values a sweep runs "
                f"study={study.name}, which varies {key} itself)"
            )
        if key is not None:
            raise ConfigError(
                f"{word}: study={study.name} varies {key} itself; leave it out, or sweep over it "
                "without study="
            )


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


def _corpora(configs: Sequence[ExperimentConfig], progress: Any) -> dict[str, Corpus]:
    needed = {_data_key(config.data): config.data for config in configs}
    corpora = apply_to_all(lambda data: prepare(data, progress=progress), needed.values())
    return dict(zip(needed, corpora, strict=True))


def _data_key(data: DataConfig) -> str:
    """The keys that decide which corpus a config uses."""
    of_runs = ("homogeneity", "sampling", "temperature", "weights", "mask_documents", "max_epochs")
    return json.dumps({key: value for key, value in asdict(data).items() if key not in of_runs})


def _is_study(override: str) -> bool:
    return override.startswith(("study=", "study."))


def _key(override: str) -> str:
    return override.split("=", 1)[0]


def _merge(composer: Composer, *layers: Iterable[str]) -> list[str]:
    """Merge layers of overrides: a later layer wins, its presets over the keys that they set."""
    kept: dict[str, str] = {}
    for layer in layers:
        new = {_key(word): word for word in layer}
        replaced = {f"{key}." for word in new.values() for key in composer.set_by(word)}
        kept = {key: word for key, word in kept.items() if not f"{key}.".startswith((*replaced,))}
        kept |= new
    return list(kept.values())
