"""What `report --power` prints: the seeds that a difference takes, from A/A twins alone."""

from collections.abc import Sequence

from moebench.records import printable
from moebench.report.infer.arms import Table
from moebench.report.infer.power import aa_noise, resolved, seeds_for
from moebench.report.show.numbers import four_decimals

SEEDS = (12, 16, 20, 24, 32, 48, 64)


def lines(tables: Sequence[Table], effect: float) -> list[str]:
    """For each table its noise, what numbers of seeds resolve, and the seeds for an effect.

    Args:
        effect: in nats a byte.
    """
    text = []
    for table in tables:
        if table.differs:
            keys = ", ".join(f"{key}={value}" for key, value in table.differs.items())
            text.append(printable(f"Runs with {keys}:"))
        noise = aa_noise(table)
        if noise is None:
            text.append(
                "the noise is not known, since no A/A twins have finished: train some with "
                "router.perturb=0,1e-6"
            )
            continue
        text.append(
            f"deviation of a paired difference: {four_decimals(noise.sd)} nats a byte, at most "
            f"{four_decimals(noise.upper)} in four of five cases ({noise.pairs} A/A pairs)"
        )
        each = [f"{n}: {four_decimals(resolved(n) * noise.upper)}" for n in SEEDS]
        text.append(f"--until-decided resolves, by most seeds: {', '.join(each)}")
        needed = seeds_for(effect, noise.upper)
        words = "more than 10,000 seeds" if needed is None else f"--most-seeds {needed}"
        text.append(f"{effect:g} nats a byte: {words}, for a power of 80 %")
    return text
