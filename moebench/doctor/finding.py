"""Checks of the machine and what they find; a check that raises is a finding, too."""

import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

State = Literal["ok", "note", "problem"]

GIB = 2**30
LONG = 200  # characters of an error

PYTHON = shlex.quote(sys.executable)
PIP = f"{PYTHON} -m pip install"


class Finding(NamedTuple):
    """One thing about this machine.

    Attributes:
        name: what was checked.
        value: what was found.
        state: `note` if all works but could be better, `problem` if something cannot work.
        remedy: what to do about a note or a problem.
    """

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


class Check(NamedTuple):
    """How to find something out, and what it means if that raises."""

    name: str
    find: Callable[[], Iterator[Finding]]
    failed: State = "note"
    remedy: str = ""


def gather(*checks: Check) -> list[Finding]:
    """What the checks find; one that raises is a finding, too."""
    findings: list[Finding] = []
    for check in checks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                findings.extend(check.find())
        except Exception as error:
            value = f"does not work: {type(error).__name__}: {brief(str(error))}"
            findings.append(Finding(check.name, value, check.failed, check.remedy))
    return findings


def brief(text: str) -> str:
    """A text of many lines as one, cut where it becomes long."""
    return " ".join(text.split())[:LONG]
