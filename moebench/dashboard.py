"""TensorBoard on all runs, and the event files (views) that it shows, written where missing."""

import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from moebench.errors import MoebenchError, RecordError
from moebench.lock import hold
from moebench.records import Record, find_records
from moebench.tensorboard import PREFIX, rebuild

ARM = r"^(.*)-s\d+-"  # of the name of a run, which goes on with its seed and hash
LOOK = {"smoothing": "0", "runColorGroup": f"regex:{ARM}"}
PAGE = "custom_scalars&_smoothingWeight=0"


def records_to_view(runs_dir: Path, *, rebuild_all: bool = False) -> list[Record]:
    """The finished runs without a view, or with `rebuild_all` all runs.

    Raises:
        RecordError: there are no runs.
    """
    records = find_records(runs_dir)
    if not records:
        raise RecordError(f"{runs_dir}: contains no runs; moebench train makes one")
    if rebuild_all:
        return records
    return [
        record
        for record in records
        if record.is_done() and not any(record.path.glob(f"tensorboard/{PREFIX}*"))
    ]


def make_views(records: list[Record]) -> Iterator[str]:
    """Write the view of each record; yields why it was not possible, or an empty string.

    The view of a run that is being trained stays, because its process is still writing it.
    """
    for record in records:
        try:
            with hold(record):
                rebuild(record)
        except MoebenchError as error:
            yield str(error)
        except OSError as error:
            yield f"{record.path}: its view cannot be written ({error.strerror})"
        else:
            yield ""


def serve(runs_dir: Path, port: int | None, on_url: Callable[[str], None]) -> None:
    """Serve the runs in TensorBoard until a signal. Only this machine can connect: no password.

    The address opens curves unsmoothed, since TensorBoard's default of 0.6 shows a final perplexity
    of 31 as 116, and gives the runs of an arm one colour.

    Args:
        port: of the page; None for 6006 or the next free one.
        on_url: called with the address of the page with moebench's layout, once it is served.

    Raises:
        MoebenchError: the page cannot be served, for example because the port is in use.
    """
    from tensorboard import program

    server = program.TensorBoard()
    options = ["--logdir", str(runs_dir), "--host", "127.0.0.1", "--window_title", "moebench"]
    server.configure(["", *options, *(["--port", str(port)] if port is not None else [])])
    try:
        on_url(f"{server.launch()}?{urllib.parse.urlencode(LOOK)}#{PAGE}")
        threading.Event().wait()
    except program.TensorBoardServerException as error:
        raise MoebenchError(f"--port: {error.msg}; choose another port") from None
    except KeyboardInterrupt:  # the command line raises it for every stopping signal
        return
