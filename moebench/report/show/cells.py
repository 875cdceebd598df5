"""Numbers as the cells of a table show them."""

from collections.abc import Sequence
from statistics import median

from moebench.report.infer.arms import Described, percent
from moebench.report.infer.statistics import Estimate
from moebench.report.show.sentences import signed

Cell = tuple[str, str]  # what is said first, and what stands below it
MOST_DIGITS = 1e7  # from here on the perplexity of a run that diverged is shown by its power of 10


def mean(described: Described | None, digits: int) -> Cell:
    if described is None or described.mean is None:
        return "-", ""
    half = ""
    if described.low is not None and described.high is not None:
        half = f"±{(described.high - described.low) / 2:.{digits}f}"
    return f"{described.mean:.{digits}f}", half


def mean_of_any_size(described: Described | None) -> Cell:
    """A mean of any size, in four digits."""
    if described is None or described.mean is None:
        return "-", ""
    half = "" if described.low is None else f"±{described.mean - described.low:.2g}"
    return f"{described.mean:.4g}", half


def estimate_cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return "", ""
    return signed(estimate.value), interval(estimate.low, estimate.high)


def interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{signed(low)} to {signed(high)}"


def interval_of_any_size(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def percent_of_perplexity(nats: Described | None) -> Cell:
    if nats is None or (value := percent(nats.difference)) is None:
        return "", ""
    low, high = (percent(end) for end in ends(nats))
    below = (
        f"{_hundredths(low)} to {_hundredths(high)}" if low is not None and high is not None else ""
    )
    return _hundredths(value), below


def _hundredths(value: float) -> str:
    return f"{value:.3g}" if value >= MOST_DIGITS else f"{round(value, 2) + 0.0:.2f}"


def perplexity(described: Described | None) -> str:
    if described is None or described.mean is None:
        return "-"
    if described.mean >= MOST_DIGITS:
        return f"{described.mean:.3g}"
    return f"{described.mean:.3f}" if described.mean < 100 else f"{described.mean:,.0f}"


def median_of(values: Sequence[float]) -> str:
    return f"{median(values):.4f}" if values else ""


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def span(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    low, high = (f"{value:.2f}" for value in values)
    return low if low == high else f"{low}-{high}"


def ends(described: Described) -> tuple[float | None, float | None]:
    return described.difference_low, described.difference_high
