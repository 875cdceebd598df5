"""Run jobs of a plan: `python -m moebench.study PLAN ID[,ID...] [PLUGIN...]`."""

import contextlib
import faulthandler
import shlex
import sys
from pathlib import Path

from moebench.study.job import DUMP
from moebench.study.worker import run_jobs

if __name__ == "__main__":
    path, ids, *plugins = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(DUMP)
    with contextlib.suppress(KeyboardInterrupt):
        command = shlex.join(["python", "-m", "moebench.study", *sys.argv[1:]])
        sys.exit(run_jobs(Path(path), [int(number) for number in ids.split(",")], plugins, command))
    sys.exit(130)
