"""What the server of the tests' processes imports and has done; nothing else may import this."""

import contextlib
import gc
import io
import os

import scipy.stats  # noqa: F401
import torch

import moebench.cli
import moebench.cli.completion
import moebench.cli.progress
import moebench.conform
import moebench.doctor
import moebench.evaluate
import moebench.export
import moebench.inspect
import moebench.report
import moebench.sample
import moebench.study.budget
import moebench.study.engines.choice
import moebench.study.worker
import moebench.tensorboard
import moebench.watch
from moebench.train.kernels import _measured_peak

with contextlib.suppress(OSError):
    os.setsid()
# What each command would do again: parse its words, compose the presets that most of them name, and
# measure the machine's products, of which only `speed/mfu` depends.
for data in ("folder data.path=.", "synthetic"):
    words = ["train", "--print-config", "model=smoke", *f"data={data}".split()]
    with contextlib.redirect_stdout(io.StringIO()):
        moebench.cli.app(words, standalone_mode=False)
_measured_peak(torch.float32, torch.device("cpu"), 1)
gc.freeze()
os.chdir("/")  # a test looks for the processes in its folder
