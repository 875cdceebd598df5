"""Runs the tests that are marked `gpu`, with the packages that are there, and prints a summary.

Without beartype, the shapes in signatures are not checked. Only files that have such tests are
imported; one that cannot be imported is a failure, and the others run.

    python benchmarks/gpu_tests.py [--json]
"""

import argparse
import importlib.util
import os
import signal
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from tables import Row, show

ROOT = Path(__file__).parent.parent
LONG = 300  # characters of an error


class Outcomes:
    """Collects the outcome of each test, as a plugin of pytest."""

    def __init__(self) -> None:
        self.counts = Counter(passed=0, failed=0, skipped=0)
        self.seconds = 0.0
        self.failures: list[Row] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self._add_failure(report.nodeid, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self._add_failure(report.nodeid, report.longreprtext)

    def _add_failure(self, test: str, text: str) -> None:
        marked = [line[2:] for line in text.splitlines() if line.startswith("E ")]
        self.failures.append({"test": test, "error": " ".join(marked or [text])[:LONG]})


def with_gpu_tests() -> list[str]:
    """The files of tests in which one is marked."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in paths if "mark.gpu" in path.read_text(encoding="utf-8")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the tests that are marked gpu.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if importlib.util.find_spec("beartype") is None:
        options += ["-o", "addopts=--import-mode=importlib --strict-markers"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # prints what has run so far
    outcomes = Outcomes()
    os.chdir(ROOT)
    with redirect_stdout(sys.stderr):
        code = pytest.main([*options, *with_gpu_tests()], plugins=[outcomes])
    counts = {**outcomes.counts, "seconds": outcomes.seconds}
    tables = {"Tests": [counts], "Failures": outcomes.failures}
    show({title: rows for title, rows in tables.items() if rows}, as_json=args.json)
    sys.exit(code)


if __name__ == "__main__":
    main()
