"""The page on which TensorBoard shows all runs, and the making of views that it lacks."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from moebench.errors import MoebenchError, RecordError
from moebench.lock import hold
from moebench.records import Record, find_records
from moebench.tensorboard import PREFIX, rebuild


def lacking_views(runs_dir: Path, *, again: bool = False) -> list[Record]:
    """The finished runs that have lost their view, or `again` all runs, whatever they have.

    Raises RecordError if there are no runs.
    """
    records = find_records(runs_dir)
    if not records:
        raise RecordError(f"{runs_dir}: holds no runs; moebench train makes one")
    if again:
        return records
    there = (record for record in records if record.is_done())
    return [each for each in there if not any(each.path.glob(f"tensorboard/{PREFIX}*"))]


def make_views(records: list[Record]) -> Iterator[str]:
    """Make the view of each record; yields why it cannot be, or nothing.

    A run that a process trains keeps its view, since that process goes on writing it.
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
    """Show the runs in TensorBoard until a signal, to this machine alone: it asks no password.

    Args:
        port: of the page; None for 6006 or the next that is free.
        on_url: told the address of the page that asks the four questions, once it is there.

    Raises:
        MoebenchError: the page cannot be served, as on a port that is in use.
    """
    from tensorboard import program

    server = program.TensorBoard()
    options = ["--logdir", str(runs_dir), "--host", "127.0.0.1", "--window_title", "moebench"]
    server.configure(["", *options, *(["--port", str(port)] if port is not None else [])])
    try:
        on_url(f"{server.launch()}#custom_scalars")
        threading.Event().wait()
    except program.TensorBoardServerException as error:
        raise MoebenchError(f"--port: {error.msg}; name another") from None
    except KeyboardInterrupt:  # which the command line makes of every signal that ends it
        return
