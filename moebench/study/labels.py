"""Labels of a plan's runs: the overrides in which arms of one label differ."""

from collections.abc import Sequence
from dataclasses import replace

from moebench.config.zipped import keys_of
from moebench.plans import Job


def distinct(jobs: Sequence[Job], *, of_grid: bool) -> list[Job]:
    """The jobs, each with the overrides in which arms of its label differ.

    Args:
        of_grid: whether the arms' labels show them too, as in `micro loss.balance=0.05`. Those of a
            study are named in its files.
    """
    sharing: dict[str, dict[str, Job]] = {}  # label -> arm hash -> the first of its runs
    for job in jobs:
        sharing.setdefault(job.arm, {}).setdefault(job.arm_hash, job)
    differing = {
        arm_hash: words for arms in sharing.values() for arm_hash, words in _differing(arms).items()
    }
    return [
        replace(job, differs=words, arm=f"{job.arm} {words}".rstrip() if of_grid else job.arm)
        for job in jobs
        for words in [differing[job.arm_hash]]
    ]


def _differing(arms: dict[str, Job]) -> dict[str, str]:
    """The words of each arm that not all of them have, without the seed; "" for a single arm."""
    words = {arm_hash: _words(job) for arm_hash, job in arms.items()}
    shared = set.intersection(*map(set, words.values()))
    return {
        arm_hash: " ".join(word for word in own if word not in shared)
        for arm_hash, own in words.items()
    }


def _words(job: Job) -> list[str]:
    return [word for word in job.overrides if keys_of(word) != ("seed",)]
