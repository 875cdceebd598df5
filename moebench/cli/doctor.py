"""`moebench doctor`: what this machine can do."""

import typer

from moebench.cli.options import RUNS, AsJson, RunsDir
from moebench.cli.output import print_json, stdout_console


def doctor(as_json: AsJson = False, runs_dir: RunsDir = RUNS) -> None:
    """Test what this machine can do, and say what to fix; exits with 1 if there is a problem.

    Example: `moebench doctor`
    """
    from moebench.doctor import examine, exit_code, render

    findings = examine(runs_dir)
    if as_json:
        print_json({"findings": [finding._asdict() for finding in findings]})
    else:
        render(findings, stdout_console())
    if code := exit_code(findings):
        raise typer.Exit(code)
