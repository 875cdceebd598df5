"""The commit of the code that runs."""

import subprocess
from pathlib import Path
from typing import Any

import moebench


def commit() -> dict[str, Any]:
    """The commit of this code and whether files differ from it; None if it is in no checkout."""
    here = Path(moebench.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(here), *words],
            capture_output=True,
            text=True,
            timeout=10,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if git("ls-files", "__init__.py"):
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        pass
    return {"commit": None, "dirty": None}
