"""`sweep --margin`: below which difference a study has none that matters."""

import re
from pathlib import Path

from moebench.errors import ConfigError, RecordError

NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)


def read_margin(text: str, runs_dir: Path) -> tuple[float, str]:
    """A margin in nats a byte, and where it comes from: a number, or a headroom study."""
    margin = typed_margin(text)
    return _of_headroom(text.strip(), runs_dir) if margin is None else (margin, "typed")


def typed_margin(text: str) -> float | None:
    """A margin in nats a byte; None for what is no number. Reads nothing.

    Raises ConfigError for a number that is no margin.
    """
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return None
    margin = float(text)
    if not 0 < margin < float("inf"):
        raise ConfigError(f"--margin {text}: must be above 0 and finite, in nats a byte")
    return margin


def _of_headroom(study: str, runs_dir: Path) -> tuple[float, str]:
    from moebench.report import make_report
    from moebench.report.infer.headroom import headroom

    try:
        report = make_report([runs_dir], study=study, runs_dir=runs_dir)
    except RecordError as error:
        raise ConfigError(
            f"--margin {study}: is neither a number above 0 nor a headroom study with results "
            f"({error})"
        ) from None
    rooms = [room for table in report.tables if (room := headroom(table)) and room.by_token]
    values = [room.by_token.value for room in rooms if room.by_token]
    if len(values) != 1 or values[0] <= 0:
        found = f"H is {values[0]:.4f}" if len(values) == 1 else f"it has {len(values)} values of H"
        raise ConfigError(
            f"--margin {study}: {found}, and a margin is a quarter of one H above 0; name another "
            "headroom study, or type a number"
        )
    margin = float(f"{values[0] / 4:.3g}")
    return margin, f"a quarter of H = {values[0]:.5f} nats a byte of {study}"


def margin_of(name: str, margin: float) -> str:
    """The margin of a finding in words, with what a slope is for."""
    from moebench.report.paper.findings import findings, has_margin
    from moebench.report.paper.selectors import AXES

    finding = findings().get(name, {"type": ""})
    if not has_margin(finding):
        return "no stop by margin, which a ranking does not have"
    per = AXES[finding["along"]][1] if "along" in finding else ""
    return f"margin {margin:g} nats a byte{per}"
