"""What the tuning seeds say: the size that was chosen, what stands in the way, and the noise."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.special import fdtri

from benchmarks import headroom_size, noise, trials
from benchmarks.headroom_size import LEARNED
from benchmarks.tuning_runs import typed, usual
from docs.published.cells import Studies, code, link, made_with, titles
from docs.published.study import NOISE, TUNED, TUNING, Study
from moebench.report.show.numbers import four_decimals

SIZES = """\
H = T - TD is what the domain is worth to a router that knows the token, in nats a byte: T routes
by the hash of the token, TD by the domain and that hash. H_L is its lower 80 % bound. s is the
deviation of a difference of two runs that differ by noise alone (A/A pairs), s_U its upper 80 %
bound, and c the minutes of one seed of six arms. A run of a stack counts its share of the stack's
minutes, so that c of stacked and of single runs compares roughly. The score is H_L² / (s_U² c). A
size is eligible if H is above 0 at all steps and at half of them, falls by at most a third between
them, and the learned arms end on average at or below T. These runs have seeds of 1000 and more,
which no study reports. The difference of scopes is read nowhere. A size that names no domains has
all of the folder."""
STEPS = "### Headroom by steps"
OF_STEPS = """\
H needs T and TD alone, so it is known for sizes that lack the runs by which a size is judged, too.
Each number of steps is a schedule of its own. *Learned less T* is above 0 where learned routers are
behind the hash of the token; it is of the weight with the most runs."""
UNLIKE = ("train.eval_every", "balance.estimator_error")  # keys in which a study may differ
BESIDE = "### Learned routers beside the hash of the token"
TRIALS = """\
A learned router behind the hash of the token has not learned yet. Each row has other steps,
weights or settings of the router. The gates of T train, too, so T is taken with the same settings
of the router, and beside it with their defaults where that was trained. MaxVio shows whether
loads are even. Seeds differ by as much as settings, so rows are ordered and compared over the seeds
that all of them have; one seed shows a direction and proves nothing. *All its seeds* is the mean
over the arms that have them all."""
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


def chosen(studies: Studies) -> list[str]:
    """Which size the rule chooses; then which studies take it, or another."""
    sizes = headroom_size.ranking(_whole(studies[TUNING]))
    if not sizes:
        return ["Size: none has been tried whole yet."]
    best, several = sizes[0], len(sizes) > 1
    keys = " ".join(_words(best.keys, [of.keys for of in sizes]))
    at = f"{best.steps} steps and weight {best.weight:g}"
    first = f"Size: the only size tried on seeds that no study reports ({at})"
    if several:
        name = f"`{keys}`" if keys else "that"
        first = f"Size: of the {len(sizes)} sizes tried on seeds that no study reports, {name} "
        first += f"with {at}"
    eligible = sum(not headroom_size.why_not(of) for of in sizes)
    _, low, _ = best.headroom(best.steps)
    if why := headroom_size.why_not(best):
        best_is = "has the largest score and is not eligible, as none is" if several else ""
        first += f" {best_is or 'is not eligible'}. It fails because: {'; '.join(why)}"
    else:
        best_is = "has the largest score of those that are" if eligible > 1 else "alone is"
        first += f" {best_is if several else 'is'} eligible; "
        first += f"the lower 80 % bound of its H is {four_decimals(low)} nats a byte"
    return [f"{first} ([how it was chosen](#the-size-and-the-noise)).", *_takers(studies, sizes)]


def eligible(studies: Studies) -> set[str]:
    """The names of the studies that take an eligible size."""
    sizes = _whole(studies[TUNING]) if TUNING in studies else []
    good = [size for size in sizes if not headroom_size.why_not(size)]
    return {
        name
        for name, study in studies.items()
        if name not in TUNED and any(_is_of(study, size) for size in good)
    }


def _words(keys: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to type for a size, of the keys in which sizes differ."""
    return [
        f"{key}={typed(value)}"
        for key, value in sorted(keys.items())
        if key != "data" and any(of.get(key) != value for of in every)
    ]


def _takers(studies: Studies, sizes: Sequence[headroom_size.Size]) -> list[str]:
    """Which studies take each size, and why it is not eligible; then those of other sizes."""
    names = titles(studies)
    takes = [[names[name] for name in names if _is_of(studies[name], of)] for of in sizes]
    told = []
    for size, own in zip(sizes, takes, strict=True):
        why = headroom_size.why_not(size)
        if why and size is sizes[0]:
            because = " this size all the same"
        elif why:
            because = f" another size, which is not eligible: {', and '.join(why)}"
        else:
            because = " the chosen size" if size is sizes[0] else " another eligible size"
        if own or (size is sizes[0] and names):
            told.append(f"{_listed(own, names.values()) or 'No study here'} {_take(own)}{because}.")
    known = {of for own in takes for of in own}
    if others := [title for title in names.values() if title not in known]:
        listed = _listed(others, names.values())
        told.append(f"{listed} {_take(others)} a size that was not tried for headroom.")
    return told


def _take(names: Sequence[str]) -> str:
    return "take" if len(names) > 1 else "takes"


def _listed(names: Sequence[str], every: Collection[str]) -> str:
    """Studies by their titles; the text that all of them share stands once, at the end.

    Args:
        every: title of the page, for those of one text that are all named.
    """
    texts = {name.partition(" on ")[2] for name in names}
    end = f" on {texts.pop()}" if len(texts) == 1 else ""
    if len(names) > 1 and end and [*names] == [of for of in every if of.endswith(end)]:
        return f"All {len(names)} studies{end}"
    links = [link(name).replace(f"{end}]", "]", 1) for name in names]
    return " and ".join(filter(None, [", ".join(links[:-1]), *links[-1:]])) + end


def _is_of(study: Study, size: headroom_size.Size) -> bool:
    """Whether learned arms of a study have the keys, steps and weight of a size."""

    def keys(science: Mapping[str, Any]) -> dict[str, Any]:
        own = {"train.steps": size.steps, "loss.balance": size.weight, **science}
        free = {*headroom_size.FREE, *UNLIKE} - {"train.steps", "loss.balance"}
        return {key: value for key, value in own.items() if key not in free}

    learned = [run for run in study.runs if headroom_size.role_of(run["science"]) in LEARNED]
    return any(keys(run["science"]) == keys(size.keys) for run in learned)


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
        rooms = headroom_size.by_steps(found[0].runs)
        parts += [SIZES, headroom_size.table(sizes)] if sizes else []
        parts += [STEPS, _with_usual(OF_STEPS, [of.keys for of in rooms])] if rooms else []
        parts += [headroom_size.steps_table(rooms)] if rooms else []
        told = _with_usual(TRIALS, [of.rest for of in tried]) if tried else ""
        parts += [BESIDE, told, trials.table(tried)] if tried else []
    parts += _noise(studies)
    commands = [of for study in found for name, of in study.about.items() if "command" in name]
    return [*parts, "The commands of this part; DIR is a folder of domains:", code(commands)]


def _with_usual(text: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """What a table is, with the values that it does not repeat."""
    found = {key: value for key, value in usual(settings).items() if key != "data"}
    values = ", ".join(f"`{key}={typed(value)}`" for key, value in found.items())
    return text + f" Where a row names no other value: {values}." * bool(values)


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
