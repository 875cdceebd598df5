"""What the server of `child.py` imports: all that a job needs. Nothing else may import this."""

import contextlib
import os
import sys
from types import TracebackType

from moebench.machine import importing


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End the server; in silence where a sweep was stopped while it asked for a job."""
    if kind is not EOFError:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _end

with contextlib.suppress(OSError):
    os.setsid()  # a signal to the terminal's processes must not end the server before its jobs

# A job imports it again, and says why it cannot.
with contextlib.suppress(Exception), importing():
    import moebench.experiment
    import moebench.study.worker  # noqa: F401
