"""The paper's findings, as the YAML files of this folder declare them, and the sizes it reports.

A file holds a finding's claim, where the paper says so, its type, which arms it is about
(`selectors.py`) and the paper's perplexities a token.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from moebench.errors import nearest
from moebench.records import printable

PAPER = "arXiv 2501.11873"
PAPER_TOKENS = 120e9
BYTES = (4.0, 3.0, 5.0)
"""Bytes a token in the paper: assumed, and the range of the assumption."""


@lru_cache(maxsize=1)
def findings() -> dict[str, dict[str, Any]]:
    """The files, by name; a name begins with the finding's number."""
    folder = Path(__file__).parent
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))}


def order_error(order: Sequence[str]) -> str:
    """What is wrong with an order of findings: a name of none, or one that comes twice; or ""."""
    known = [*findings()]
    for place, name in enumerate(order):
        if name not in known:
            near = ", ".join(nearest(name, known) or known)
            return f"study.order={printable(name)}: is no finding; did you mean {near}?"
        if name in order[:place]:
            return f"study.order={name}: comes twice; name it once"
    return ""


def has_margin(finding: Mapping[str, Any]) -> bool:
    """Whether one contrast within a margin says that there is nothing: not of a ranking of arms."""
    return finding["type"] != "ranking"


def log_ratio(finding: Mapping[str, Any]) -> float:
    """The paper's difference of a finding's two arms, in nats a token."""
    perplexity = finding["perplexity"]
    return math.log(perplexity["arm"] / perplexity["against"])


def paper_gap() -> float:
    """Micro less global in the paper, in nats a token."""
    perplexity = findings()["01-global-below-micro"]["perplexity"]
    return math.log(perplexity["against"] / perplexity["arm"])


def paper_gaps(bytes_per_token: float | None) -> tuple[float, ...] | None:
    """`paper_gap` in nats a token of these runs, at 4, 3 and 5 bytes a token in the paper.

    Args:
        bytes_per_token: of these runs; None where it is not known, which gives None.
    """
    if not bytes_per_token:
        return None
    return tuple(paper_gap() / size * bytes_per_token for size in BYTES)
