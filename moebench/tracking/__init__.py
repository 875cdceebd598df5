"""Runs in a tracker: a view of records that is sent while they grow, or when they are done.

A record is read, never the run itself, so `--track` and `moebench track` send the same. What the
tracker has of a run already is replaced. Nothing is sent unless the user names a tracker. A tracker
that fails says so once, and the runs go on.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from moebench.disk import reason
from moebench.errors import MoebenchError
from moebench.records import Record
from moebench.tracking.feed import Feed, Tracker

EVERY = 2.0  # seconds between looks at the records that grow
LONGEST = 60.0  # seconds to wait at the end for a tracker that does not answer


class Mirror:
    """Sends what is new in some records to a tracker.

    Args:
        tracker: of `trackers.open_tracker`.
        records: those of the runs, whether they have begun or not.
        old: whether runs that are done by now count, and not only those that are done later.
    """

    def __init__(self, tracker: Tracker, records: Iterable[Record], *, old: bool = True) -> None:
        self._tracker = tracker
        self._waiting = [(record, 0 if old else _sealed(record)) for record in records]
        self._feeds: list[Feed] = []

    def update(self, *, last: bool = False) -> None:
        """Send what the records hold by now.

        Args:
            last: whether no more will come, so that unfinished runs end here.

        Raises what the library of the tracker raises, and RecordError for a damaged record.
        """
        for record, sealed in [*self._waiting]:
            if record.exists() and (not sealed or _sealed(record) != sealed):
                self._waiting.remove((record, sealed))
                self._feeds.append(Feed(record, self._tracker))
        for feed in [*self._feeds]:
            if feed.record.exists() and feed.send(last=last):
                self._feeds.remove(feed)


def _sealed(record: Record) -> int:
    """When a run was sealed, in nanoseconds; 0 if it is not done."""
    return (record.path / "summary.json").stat().st_mtime_ns if record.is_done() else 0


@contextmanager
def following(
    tracker: Tracker, records: Iterable[Record], say: Callable[[str], None]
) -> Iterator[None]:
    """Mirror records while the block runs, from a thread of its own, so that no step waits.

    Runs that are done by now are left out, unless they are trained again.

    Args:
        say: gets a line if the tracker fails; it then gets nothing more.
    """
    mirror = Mirror(tracker, records, old=False)
    ended = threading.Event()

    def send() -> None:
        try:
            while not ended.wait(EVERY):
                mirror.update()
            mirror.update(last=True)
        except Exception as error:  # of whatever kind the library raises
            say(_failed(tracker, error))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LONGEST)
        if thread.is_alive():
            say(f"--track {tracker.name}: does not answer; moebench track sends the rest later")


def _failed(tracker: Tracker, error: Exception) -> str:
    """A line about a tracker that failed."""
    if isinstance(error, MoebenchError):
        return f"--track {tracker.name}: {error}"
    return (
        f"--track {tracker.name}: failed ({reason(error)}); "
        "the run goes on; moebench track sends it later"
    )
