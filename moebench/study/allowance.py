"""Hours that a sweep may take, spent on whole seeds, so that what is done compares."""

import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from moebench.errors import ConfigError
from moebench.plans import Job
from moebench.study.budget import Budget

HOUR = 3600.0


class Allowance:
    """Which seeds of a sweep may begin; one that has begun is completed.

    Args:
        hours: from now on.
        budget: of the jobs.
        jobs: those that are not done, in the order in which they start.

    Attributes:
        jobs: those of the seeds that fit by the estimate.

    Raises:
        ConfigError: if not even the first seed fits.
    """

    def __init__(self, hours: float, budget: Budget, jobs: Sequence[Job]) -> None:
        self.hours, self._budget = hours, budget
        self._end = time.monotonic() + hours * HOUR
        self.jobs = self._fitting(jobs)
        if jobs and not self.jobs:
            first = _by_seed(jobs)[0]
            needed = budget.makespan(first).middle / HOUR
            raise ConfigError(
                f"--hours {hours:g}: the {len(first)} runs of a seed take about {needed:.2g} hours "
                "here; allow more, or sweep over fewer arms"
            )

    def still_fitting(
        self, active: Sequence[Job], waiting: Sequence[Job], done: Mapping[int, float]
    ) -> list[Job]:
        """Those of the waiting jobs that may begin, by the time left and the speed of the others.

        Args:
            active: jobs that run now.
            done: seconds that jobs have taken, by their ids.
        """
        begun = {job.seed for job in self.jobs if job.id in done} | {job.seed for job in active}
        if not begun:
            return list(waiting)
        certain = [job for job in waiting if job.seed in begun]
        others = [job for job in waiting if job.seed not in begun]
        of_id = {job.id: job for job in self.jobs}
        ratios = [s / self._budget.seconds([of_id[n]]).middle for n, s in done.items() if s]
        return certain + self._fitting(others, [*active, *certain], median(ratios or [1.0]))

    def _fitting(
        self, jobs: Iterable[Job], before: Sequence[Job] = (), slower: float = 1.0
    ) -> list[Job]:
        """The jobs of the first seeds that end in time after those `before`.

        Args:
            slower: the time of a job as a multiple of the estimate.
        """
        kept: list[Job] = []
        for of_seed in _by_seed(jobs):
            needed = slower * self._budget.makespan([*before, *kept, *of_seed]).middle
            if time.monotonic() + needed > self._end:
                break
            kept += of_seed
        return kept


def _by_seed(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs of each seed."""
    by_seed: dict[int, list[Job]] = {}
    for job in jobs:
        by_seed.setdefault(job.seed, []).append(job)
    return list(by_seed.values())
