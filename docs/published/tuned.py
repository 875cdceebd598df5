"""What the tuning seeds say: the size that was chosen, what stands in the way, and the noise."""

from benchmarks import headroom_size, noise, trials
from docs.published.cells import Studies, code, made_with
from docs.published.study import TUNING, Study
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
loads are even. Rows of one seed show a direction and prove nothing."""
NOISE = """\
How far two runs differ that differ by noise alone: s and its upper bound s_U, in nats a byte. *Of
the text* is the share of the variance that more validation text would remove. The last column
compares the time that equal power takes."""


def chosen(tuned: Study) -> str:
    """Which size the rule chooses."""
    sizes = headroom_size.ranking(_whole(tuned))
    if not sizes:
        return "Size: none has been tried whole yet."
    if why := headroom_size.why_not(sizes[0]):
        number = f"none of the {len(sizes)} sizes" if len(sizes) > 1 else "the only size"
        no = "" if len(sizes) > 1 else "not "
        return (
            f"Size: {number} tried on seeds that no study reports is {no}eligible. The studies "
            f"take the one with the largest score all the same. It fails because: {'; '.join(why)} "
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
    if TUNING not in studies:
        return []
    tuned = studies[TUNING]
    sizes, tried = _whole(tuned), trials.trials_of(tuned.runs)
    settings = noise.settings_of(tuned.runs)
    parts = ["## The size, and the noise", made_with(tuned.about)]
    parts += [SIZES, headroom_size.table(sizes)] if sizes else []
    parts += [BESIDE, TRIALS, trials.table(tried)] if tried else []
    parts += ["### Noise", NOISE, noise.table(settings)] if settings else []
    commands = [text for name, text in tuned.about.items() if name.startswith("command")]
    return [*parts, "The commands of this part; DIR is a folder of domains:", code(commands)]
