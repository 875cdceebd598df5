"""What the tuning seeds say: the size that was chosen, what stands in the way, and the noise."""

import math
import shlex
from collections.abc import Sequence
from itertools import combinations

from scipy.special import fdtri

from benchmarks import headroom_size, noise, trials
from benchmarks.tuning_runs import usual
from docs.published.cells import Studies, code, made_with
from docs.published.study import NOISE, TUNED, TUNING, Study
from moebench.report.show.numbers import four_decimals

SIZES = """\
H = T - TD is what the domain is worth to a router that knows the token, in nats a byte: T routes
by the hash of the token, TD by the domain and that hash. H_L is its lower 80 % bound. s is the
deviation of a difference of two runs that differ by noise alone (A/A pairs), s_U its upper 80 %
bound, and c the minutes of one seed of six arms. The score is H_L² / (s_U² c). A size is eligible
if H is above 0 at all steps and at half of them, falls by at most a third between them, and the
learned arms end on average at or below T. These runs have seeds of 1000 and more, which no study
reports. The difference of scopes is read nowhere."""
BESIDE = "### Learned routers beside the hash of the token"
TRIALS = """\
A learned router behind the hash of the token has not learned yet. Each row has other steps,
weights or settings of the router. The gates of T train, too, so T is taken with the same settings
of the router, and beside it with their defaults where that was trained. MaxVio shows whether
loads are even. Rows of one seed show a direction and prove nothing. Seeds differ by as much as
settings: in parentheses stands the mean over the seeds that all rows have, by which rows are
ordered and can be compared."""
OF_NOISE = """\
How far two runs differ that differ by noise alone: s is the deviation of a paired difference of two
such runs, s_U its upper 80 % bound, in nats a byte. Such runs are *twins*: one arm and seed, whose
routers begin with weights that differ by a millionth (`router.perturb`), so that their true
difference is 0. *Of the text* is the share of the variance that more validation text would remove;
as an estimate from few pairs, it can lie below 0. The last column
compares the time that equal power takes: s² times *minutes* of a run, the least being 1. Runs that
shared the machine with other work took more minutes a step, which counts against them here."""
APART = """\
Two deviations from {pairs} pairs each are told apart (F test, 5 %) where one is at least
{ratio:.1f} times the other: {found}."""
PLANNED = """\
Which of these lowers the noise is not run yet: a learning rate of 0 at the end, an average of late
weights, or twice the steps. The commands; DIR is a folder of domains:"""


def chosen(tuned: Study) -> str:
    """Which size the rule chooses."""
    sizes = headroom_size.ranking(_whole(tuned))
    if not sizes:
        return "Size: none has been tried whole yet."
    if why := headroom_size.why_not(sizes[0]):
        told = f"none of the {len(sizes)} sizes", "", "the one with the largest score"
        number, no, taken = told if len(sizes) > 1 else ("the only size", "not ", "it")
        return (
            f"Size: {number} tried on seeds that no study reports is {no}eligible. The studies "
            f"take {taken} all the same. It fails because: {'; '.join(why)} "
            "([what H is, and the table](#the-size-and-the-noise))."
        )
    best, name = sizes[0], headroom_size.named([of.keys for of in sizes])[0]
    _, low, _ = best.headroom(best.steps)
    return (
        f"Size: {name}, with {best.steps} steps and weight {best.weight:g}. Of all eligible ones "
        f"it has the largest score; H_L is {four_decimals(low)} nats a byte."
    )


def _whole(tuned: Study) -> list[headroom_size.Size]:
    """The sizes that have all runs by which they are judged."""
    sizes = headroom_size.sizes_of(tuned.runs)
    return [size for size in sizes if not headroom_size.too_few(size)]


def sections(studies: Studies) -> list[str]:
    """Which size was chosen, what stands in the way, and the noise."""
    found = [studies[name] for name in TUNED if name in studies]
    if not found:
        return []
    parts = ["## The size, and the noise", made_with(found[0].about)]
    if TUNING in studies:
        sizes, tried = _whole(found[0]), trials.trials_of(found[0].runs)
        parts += [SIZES, headroom_size.table(sizes)] if sizes else []
        parts += [BESIDE, _of_trials(tried), trials.table(tried)] if tried else []
    parts += _noise(studies)
    commands = [of for study in found for name, of in study.about.items() if "command" in name]
    return [*parts, "The commands of this part; DIR is a folder of domains:", code(commands)]


def _of_trials(tried: Sequence[trials.Trial]) -> str:
    """What the table of trials is, with the values that it does not repeat."""
    found = usual([trial.keys for trial in tried])
    values = ", ".join(f"`{key}={value}`" for key, value in found.items())
    return TRIALS + f" Where a row names no other value: {values}." * bool(values)


def _noise(studies: Studies) -> list[str]:
    """The settings by their noise; what there is of the size alone, until they were compared."""
    runs = studies[NOISE if NOISE in studies else TUNING].runs
    settings = noise.settings_of(runs)
    parts = ["### Noise", OF_NOISE, *([noise.table(settings)] if settings else [])]
    pairs = sorted(setting.noise().pairs for setting in settings)
    if len(pairs) > 1:
        ratio = math.sqrt(fdtri(pairs[0], pairs[0], 0.975))
        found = "; ".join(_apart(settings, ratio)) or "none here"
        parts.append(APART.format(pairs=pairs[0], ratio=ratio, found=found))
    commands = [of.made()["command"] for name, of in studies.items() if name not in TUNED]
    if NOISE not in studies:
        parts += [PLANNED, code(noise_commands(commands[0] if commands else ""))]
    return parts


def _apart(settings: Sequence[noise.Setting], ratio: float) -> list[str]:
    """The pairs of settings whose deviations have this ratio, the smaller one first."""
    ranked = sorted(settings, key=lambda of: of.noise().sd)
    names = [f"`{name}`" for name in headroom_size.named([of.keys for of in ranked])]
    pairs = combinations(zip(names, ranked, strict=True), 2)
    return [
        f"{small} below {large}"
        for (small, low), (large, high) in pairs
        if high.noise().sd >= ratio * low.noise().sd
    ]


def noise_commands(command: str) -> list[str]:
    """What to run to compare settings by their noise.

    Args:
        command: of a study, whose model, data and steps are taken; "" for the defaults.
    """
    left_out = ("scope=", "study=", "seed=", "train.eval_every=", "optim.", "router.perturb=")
    words = [word for word in shlex.split(command) if "=" in word and not word.startswith(left_out)]
    steps = next((word for word in words if word.startswith("train.steps=")), "train.steps=400")
    twice = f"train.steps={2 * int(steps.partition('=')[2])}"
    of = ["scope=micro", "router.perturb=0,1e-6,2e-6", "seed=1000,1001,1002,1003"]
    start = ["moebench", "sweep", "--name", "noise", *of, "train.eval_every=0"]
    rest = [word for word in words if word != steps]
    settings = ([steps, "optim.final=0.1,0"], [steps, "optim.ema=0.2"], [twice])
    return [shlex.join([*start, *rest, *setting]) for setting in settings]
