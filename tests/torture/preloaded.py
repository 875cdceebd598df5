"""What the server of a torture's processes has done before it forks: a run, up to its first step.

Not a step: after a backward pass, torch refuses to compute gradients in a forked process.
"""

import os
import shutil
import tempfile
from pathlib import Path

import tests.preloaded  # noqa: F401
from moebench.data.corpus import prepare
from moebench.experiment import run_experiment
from moebench.train.loop import Event
from tests.torture.runs import configs


class _Warm(BaseException):
    pass


def _stop(_: Event) -> None:
    raise _Warm


def _warm_up() -> None:
    folder = Path(tempfile.mkdtemp(dir=os.environ["TORTURE_ROOM"]))
    [config] = configs("global")
    try:
        run_experiment(config, prepare(config.data), folder, on_event=_stop)
    except _Warm:
        shutil.rmtree(folder)


_warm_up()
