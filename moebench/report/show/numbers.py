"""Numbers and lists as tables and sentences print them."""

from collections.abc import Sequence
from statistics import median

from moebench.report.infer.metrics import ArmMetric, percent
from moebench.report.infer.statistics import Estimate
from moebench.report.show.blocks import Cell

MOST_DIGITS = 1e7  # larger perplexities, of runs that diverged, are printed with an exponent


def four_decimals(value: float) -> str:
    """A negative number that rounds to 0 loses its sign."""
    return f"{round(value, 4) + 0.0:.4f}"


def as_percent(share: float) -> str:
    """A level, or how sure an interval is: 0.005 as 0.5 %."""
    return f"{100 * share:g} %"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.1 else f"p {p:.2f}"


def interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{four_decimals(low)} to {four_decimals(high)}"


def general_interval(low: float | None, high: float | None) -> str:
    """For values of any size, in three digits."""
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def mean_cell(metric: ArmMetric | None, decimals: int) -> Cell:
    """A mean, and below it half of its interval."""
    if metric is None or metric.mean is None:
        return "-", ""
    half = ""
    if metric.low is not None and metric.high is not None:
        half = f"±{(metric.high - metric.low) / 2:.{decimals}f}"
    return f"{metric.mean:.{decimals}f}", half


def general_mean_cell(metric: ArmMetric | None) -> Cell:
    """For a mean of any size, in four digits."""
    if metric is None or metric.mean is None:
        return "-", ""
    half = "" if metric.low is None else f"±{metric.mean - metric.low:.2g}"
    return f"{metric.mean:.4g}", half


def estimate_cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return "", ""
    return four_decimals(estimate.value), interval(estimate.low, estimate.high)


def percent_cell(nats: ArmMetric | None) -> Cell:
    """A difference in nats as percent of perplexity, and its interval."""
    if nats is None or (value := percent(nats.difference)) is None:
        return "", ""
    low, high = percent(nats.difference_low), percent(nats.difference_high)
    below = "" if low is None or high is None else f"{_hundredths(low)} to {_hundredths(high)}"
    return _hundredths(value), below


def _hundredths(value: float) -> str:
    return f"{value:.3g}" if value >= MOST_DIGITS else f"{round(value, 2) + 0.0:.2f}"


def perplexity(metric: ArmMetric | None) -> str:
    if metric is None or metric.mean is None:
        return "-"
    if metric.mean >= MOST_DIGITS:
        return f"{metric.mean:.3g}"
    return f"{metric.mean:.3f}" if metric.mean < 100 else f"{metric.mean:,.0f}"


def median_of(values: Sequence[float]) -> str:
    return f"{median(values):.4f}" if values else ""


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def value_range(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "-"
    low, high = (f"{value:.2f}" for value in ends)
    return low if low == high else f"{low}-{high}"


def count_range(ends: tuple[float, float]) -> str:
    """Counts of steps or tokens, in millions where they are large."""
    low, high = (
        f"{value / 1e6:.1f} million" if value >= 1e6 else f"{value:,.0f}" for value in ends
    )
    return low if low == high else f"{low} to {high}"


def listed(parts: Sequence[str]) -> str:
    """At least one word, as in "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
