"""The report as a live page: served to this machine while runs train, and made again from records.

The page is that of `moebench report --html`, with how far each study has come at its top. A browser
asks for its content again and again; it is made anew when a file of the runs has changed, and at
most a tenth of the time, since training needs the cores. The server gives out two addresses, `/`
and `/content`, and opens no file by a name that a browser sends.
"""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from moebench.errors import MoebenchError
from moebench.lease import is_held
from moebench.plans import Plan
from moebench.report import make_report
from moebench.report.read.studies import find_wanted
from moebench.report.show.blocks import Sentences
from moebench.report.show.page import ArmProgress, Progress, Section, content, whole
from moebench.study.status import RunStatus, clock, run_statuses, seconds_left

HOST = "127.0.0.1"
PORT = 6007  # TensorBoard's is 6006
SHARE = 10  # the content is made again after this multiple of the processor time that it takes
LEAST_WAIT = 5.0  # seconds
ENDS = ("done", "failed", "stopped")  # states of a run that does not go on by itself


class Page:
    """The page on the runs of a directory, made again when they have changed.

    Args:
        runs_dir: the directory.
        study: the name of a study, whose runs alone are shown; None shows all.
        command: what was typed.

    Raises:
        RecordError: if there is no such study.
    """

    def __init__(self, runs_dir: Path, study: str | None, command: str) -> None:
        self.runs_dir = runs_dir
        self.study = study
        self.command = command
        self.title = ""
        self.wait = LEAST_WAIT
        self._lock = Lock()
        self._content, self._stamp, self._due = "", "", 0.0
        self._plans()

    def whole(self) -> str:
        """The page with its scripts."""
        content = self.content()  # first, since it sets the title
        return whole(self.title, content, live=True)

    def content(self) -> str:
        """The part that changes, not older than `wait` seconds."""
        with self._lock:
            if time.monotonic() >= self._due:
                self._make()
            return self._content

    def _make(self) -> None:
        begun = time.thread_time()
        stamp = _stamp(self.runs_dir)
        if stamp != self._stamp:
            self._content, self._stamp = self._made(), stamp
            self.wait = max(LEAST_WAIT, SHARE * (time.thread_time() - begun))
        self._due = time.monotonic() + self.wait

    def _made(self) -> str:
        sections: Sequence[Section]
        plans: Sequence[Plan] = ()
        try:
            plans = self._plans()
            report = make_report([self.runs_dir], study=self.study, runs_dir=self.runs_dir)
            sections = report.sections()
        except MoebenchError as error:
            sections = [Section([Sentences("Nothing to compare yet", [str(error)])])]
        self.title = plans[0].title if len(plans) == 1 else f"Runs in {self.runs_dir}"
        states = [(plan, run_statuses(plan, self.runs_dir)) for plan in plans]
        unfinished = [_progress(plan, runs) for plan, runs in states]
        begun = [progress for progress in unfinished if progress is not None]
        end = _ended(run for _, runs in states for run in runs)
        return content(self.title, sections, plans, self.command, begun, live=True, ended=end)

    def ended(self) -> str:
        """How all runs have ended, in a sentence; "" while some wait or train. It makes no page."""
        try:
            plans = self._plans()
        except MoebenchError:
            return ""
        return _ended(run for plan in plans for run in run_statuses(plan, self.runs_dir))

    def _plans(self) -> Sequence[Plan]:
        return find_wanted([self.runs_dir], self.study, self.runs_dir)[0]


def _stamp(runs_dir: Path) -> str:
    """What changes when a run begins, logs a row, ends or dies: files and locks."""
    digest = hashlib.sha256()
    for pattern in ("*/metrics.jsonl", "*/status.json", "*/summary.json", "studies/*/plan.json"):
        for path in sorted(runs_dir.glob(pattern)):
            try:
                state = os.stat(path)
            except OSError:  # it was replaced just now
                continue
            digest.update(f"{path} {state.st_mtime_ns} {state.st_size}\n".encode())
    for path in sorted(runs_dir.glob(".locks/*.lock")):  # a killed run changes no file
        digest.update(f"{path} {is_held(path)}\n".encode())
    return digest.hexdigest()


def _ended(runs: Iterable[RunStatus]) -> str:
    """How all runs have ended; "" while some wait or train, and if there is none."""
    counts = Counter(run.state for run in runs)
    ends = [f"{counts.pop(state)} {state}" for state in ENDS if state in counts]
    return f"All runs have ended: {', '.join(ends)}." if ends and not counts else ""


def _progress(plan: Plan, runs: Sequence[RunStatus]) -> Progress | None:
    """How far a study has come; None if all its runs are done."""
    if all(run.state == "done" for run in runs):
        return None
    arms: dict[str, list[RunStatus]] = {}
    for job, run in zip(plan.jobs, runs, strict=True):
        arms.setdefault(job.arm_hash, []).append(run)
    done = sum(run.state == "done" for run in runs)
    left = seconds_left(runs)
    about = f"{done} of {len(runs)} runs done, {_share(runs):.0%} of all steps"
    return Progress(
        title=f"Progress of {plan.slug}",
        about=about + (f", about {clock(left)} left" if left is not None else ""),
        share=_share(runs),
        arms=[
            ArmProgress(
                arm=of_arm[0].arm,
                share=_share(of_arm),
                runs=[(run.seed, run.state, _about(run)) for run in of_arm],
                left=_left(of_arm),
            )
            for of_arm in arms.values()
        ],
    )


def _share(runs: Sequence[RunStatus]) -> float:
    return sum(run.step for run in runs) / max(1, sum(run.steps for run in runs))


def _about(run: RunStatus) -> str:
    if run.state == "done":
        return "done"
    if run.state == "waiting" and not run.step:
        return "waiting"
    left = f", {clock(run.seconds_left)} left" if run.seconds_left is not None else ""
    return f"{run.state} at {run.step} of {run.steps}{left}"


def _left(runs: Sequence[RunStatus]) -> str:
    """The longest time that a running run of an arm still takes; "" if none runs."""
    known = [run.seconds_left for run in runs if run.seconds_left is not None]
    return clock(max(known)) if known else ""


def serve(
    page: Page,
    port: int | None,
    on_url: Callable[[str], None],
    on_end: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a page until a signal. Only this machine can connect: there is no password.

    Args:
        port: of the page; None for 6007, or a free one if that is in use.
        on_url: called with the address, once it is served.
        on_end: called with how all runs have ended, once they have.

    Raises:
        MoebenchError: if the port cannot be used.
    """
    try:
        server = _server(page, port, on_end)
    except OSError as error:
        raise MoebenchError(
            f"--port {port}: cannot be used ({error.strerror}); choose another port"
        ) from None
    with server:
        on_url(f"http://{HOST}:{server.server_port}/")
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:  # the command line raises it for every stopping signal
            return


class Server(ThreadingHTTPServer):
    """Answers several tabs at once; a slow one does not keep the process from ending."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(
        self, page: Page, port: int, on_end: Callable[[str], None] = lambda _: None
    ) -> None:
        self.page = page
        self.on_end = on_end
        self._told, self._due = "", 0.0
        super().__init__((HOST, port), Handler)

    def service_actions(self) -> None:
        """Say when all runs have ended; asked several times a second, while the server serves."""
        if (now := time.monotonic()) < self._due:
            return
        begun, ended = time.thread_time(), self.page.ended()
        if ended and ended != self._told:
            self.on_end(ended)
        self._told = ended
        self._due = now + max(LEAST_WAIT, SHARE * (time.thread_time() - begun))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A tab that was closed in the middle of an answer is no error; the rest is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _server(page: Page, port: int | None, on_end: Callable[[str], None]) -> Server:
    if port is not None:
        return Server(page, port, on_end)
    try:
        return Server(page, PORT, on_end)
    except OSError:
        return Server(page, 0, on_end)


class Handler(BaseHTTPRequestHandler):
    """Two addresses, by GET alone."""

    server_version = "moebench"
    sys_version = ""
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if not self._is_from_here():
            self._send(HTTPStatus.FORBIDDEN, b"the host is not this machine\n", "text/plain")
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, self.server.page.whole().encode())
        elif self.path == "/content":
            self._send_content()
        else:
            self._send(HTTPStatus.NOT_FOUND, b"there is only /\n", "text/plain")

    def _send_content(self) -> None:
        body = self.server.page.content().encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", tag=tag)
        else:
            self._send(HTTPStatus.OK, body, tag=tag)

    def _is_from_here(self) -> bool:
        """Whether the page is asked for by this machine's name: no other site's may lead here."""
        name, _, port = self.headers.get("Host", "").partition(":")
        return name in (HOST, "localhost") and (port or "80") == str(self.server.server_port)

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str = "text/html", tag: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Retry-After", f"{self.server.page.wait:.0f}")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal shows the address."""
