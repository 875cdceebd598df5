"""What the server of `child.py` imports: all that a job needs. Nothing else may import this."""

import contextlib
import os

from moebench.machine import importing

with contextlib.suppress(OSError):
    os.setsid()  # a signal to the terminal's processes must not end the server before its jobs

# A job imports it again, and says why it cannot.
with contextlib.suppress(Exception), importing():
    import moebench.experiment
    import moebench.study.worker  # noqa: F401
