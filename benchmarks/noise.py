"""What lowers the noise of paired differences: a table from A/A twins on tuning seeds.

    python benchmarks/noise.py RUNS      # runs of any settings, each with A/A twins

Twins are runs of one arm and seed that differ in `router.perturb` alone, so that their true
difference is 0. Each setting (steps, `optim.final`, `optim.ema`, ...) has a row: the deviation of a
paired difference with its upper 80 % bound, the same with the mean of two twins as control, and how
much of its variance is chance of the validation text. That is told by halves: the difference of two
runs is measured on the `test` and on the `tune` half of the documents, which share training and no
text, so that their mean product is the variance without the text's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tuning_runs import named, print_table, refuse_reported
from moebench.report.infer.arms import BITS
from moebench.report.infer.power import Noise, noise_of

TUNE = "tune/bits_per_byte"
ROLE = ("seed", "scope", "balance_bsz", "loss.balance", "router.perturb", "data.homogeneity")


@dataclass
class Setting:
    """Runs of one setting.

    Attributes:
        keys: that make it.
        twins: nats a byte on the test half and the tune half, [runs, 2], by arm and seed.
        minutes: of each run.
    """

    keys: Mapping[str, Any]
    twins: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)
    minutes: list[float] = field(default_factory=list)

    def contrasts(self, half: int | None = 0) -> np.ndarray:
        """Independent differences of twins, each with the variance of a paired difference.

        Of k twins there are k - 1, by Helmert's contrasts.

        Args:
            half: 0 for the test half, 1 for the tune half, None for the mean of both.
        """
        found: list[float] = []
        for runs in self.twins.values():
            values = np.array(runs)
            values = values.mean(1) if half is None else values[:, half]
            for k in range(1, len(values)):
                found.append((values[k] - values[:k].mean()) * math.sqrt(2 * k / (k + 1)))
        return np.array(found)

    def noise(self, half: int | None = 0) -> Noise:
        return noise_of(self.contrasts(half))

    def of_text(self) -> float:
        """The share of the variance on the test half that is chance of its text; NaN if unknown."""
        test, tune = self.contrasts(0), self.contrasts(1)
        total = float((test**2).mean())
        return 1 - float((test * tune).mean()) / total if total else math.nan


def settings_of(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """The settings that have twins, from rows of the frame with their metrics.

    Raises RecordError for a run on a seed that is reported.
    """
    found: dict[str, Setting] = {}
    for row in sorted(rows, key=lambda row: row["science"].get("router.perturb", 0.0)):
        science, metrics = row["science"], row["metrics"]
        if BITS not in metrics:
            continue
        refuse_reported(row, "measure noise")
        keys = {key: value for key, value in science.items() if key not in ROLE}
        setting = found.setdefault(repr(sorted(keys.items(), key=str)), Setting(keys))
        arm = repr([science.get(key) for key in ROLE if key not in ("seed", "router.perturb")])
        halves = (metrics[BITS], metrics.get(TUNE, math.nan))
        nats = (math.log(2) * halves[0], math.log(2) * halves[1])
        setting.twins.setdefault((arm, row["seed"]), []).append(nats)
        if metrics.get("seconds"):
            setting.minutes.append(metrics["seconds"] / 60)
    return [setting for setting in found.values() if len(setting.contrasts())]


def table(settings: Sequence[Setting]) -> str:
    """A row a setting, the least noise for its time first."""

    def worth(setting: Setting) -> float:
        """Variance times minutes, to which the time for a given power is in proportion."""
        minutes = float(np.mean(setting.minutes)) if setting.minutes else math.nan
        return setting.noise().sd ** 2 * minutes

    least = min(map(worth, settings))
    lines = [
        "| setting | pairs | s | s_U | s, two twins as control | s, both halves | of the text | "
        "minutes | time for a power |",
        "|---" * 9 + "|",
    ]
    ranked = sorted(settings, key=worth)
    for setting, name in zip(ranked, named([of.keys for of in ranked]), strict=True):
        noise = setting.noise()
        numbers = (noise.sd, noise.upper, noise.sd * math.sqrt(0.75), setting.noise(None).sd)
        minutes = float(np.mean(setting.minutes)) if setting.minutes else math.nan
        cells = [name, str(noise.pairs), *(f"{value:.5f}" for value in numbers)]
        cells += [f"{100 * setting.of_text():.0f} %", f"{minutes:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{worth(setting) / least:.2f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    lacks = "no A/A twins; train them as in scope=micro router.perturb=0,1e-6"
    print_table("What lowers the noise of paired differences.", settings_of, table, lacks)
