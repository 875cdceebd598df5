"""What the server of the tests' processes imports; nothing else may import this."""

import contextlib
import os

import moebench.cli.train
import moebench.evaluate
import moebench.experiment
import moebench.report
import moebench.study.worker
import moebench.tensorboard  # noqa: F401

with contextlib.suppress(OSError):
    os.setsid()
os.chdir("/")  # a test looks for the processes in its folder
