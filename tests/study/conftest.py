"""Fixture: overrides for a small run."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def small(text_folder: Path) -> Callable[..., list[str]]:
    """Returns the overrides of a small run, followed by the given ones."""

    def made(*more: str) -> list[str]:
        return [
            *("model=smoke", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
            *("data=folder", f"data.path={text_folder}", *more),
        ]

    return made
