"""The live page: it follows the records, gives out nothing else, and answers this machine alone."""

import json
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest

from moebench import watch
from moebench.lock import hold
from moebench.records import Record
from moebench.watch import Page, Server
from tests.processes import Process, moebench, until
from tests.report.conftest import make_plan, make_run

ROWS = [{"step": step, "valid/nats": 2.0 - step / 100} for step in (0, 10, 20)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A study of two arms: one has ended, one still trains."""
    path = tmp_path / "runs"
    done = make_run(path, "micro", rows=ROWS)
    going = make_run(path, "global", rows=ROWS[:2], state="running")
    plan = make_plan(path, "scope", [done, going])
    content = json.loads(plan.read_text())
    for planned in content["runs"]:
        planned["config"] = {"train": {"steps": 400}}
    plan.write_text(json.dumps(content))
    return path


def going(runs: Path) -> Record:
    (record,) = [Record(path.parent) for path in runs.glob("*/status.json")
                 if not Record(path.parent).is_done()]  # fmt: skip
    return record


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Ask the server for an address; gives status, text and tag."""
    monkeypatch.setattr(watch, "LEAST_WAIT", 0.0)
    monkeypatch.setattr(watch, "SHARE", 0)
    with Server(Page(runs, None, "moebench watch"), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def made(address: str, **headers: str) -> tuple[int, str, str]:
            url = f"http://127.0.0.1:{server.server_port}{address}"
            request = urllib.request.Request(url, headers=headers)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read().decode(), answer.headers["ETag"] or ""
            except HTTPError as error:
                with error:
                    return error.code, error.read().decode(), error.headers["ETag"] or ""

        yield made
        server.shutdown()
        thread.join()


def test_the_page_follows_the_records(runs: Path, ask: Ask) -> None:
    record = going(runs)
    with hold(record):
        status, page, _ = ask("/")
        assert status == 200
        assert "data-live" in page
        assert "window.vegaEmbed" in page
        assert "connect-src" in page
        assert "<title>Study scope: What?</title>" in page
        status, content, tag = ask("/content")
        assert status == 200
        assert "window.vegaEmbed" not in content
        assert "1 of 2 runs done" in content
        assert "have ended" not in content
        assert "running at 120 of 400" in content
        assert '<dt>Interim</dt>' in content  # fmt: skip
        assert content.index("<dt>Interim</dt>") < content.index("1 of 2 runs done")
        assert content.index("1 of 2 runs done") < content.index("running at 120")
        assert '"step":10.0' in content
        assert "data:image/" not in content, "scripts run on a live page"
        assert ask("/content", **{"If-None-Match": tag})[0] == 304

        record.append({"step": 20, "valid/nats": 1.7})
        record.set_status("running", step=200, steps=400, seconds=50.0)
        status, later, other = ask("/content", **{"If-None-Match": tag})
        assert (status, other == tag) == (200, False)
        assert "running at 200 of 400, 0:00:50 left" in later
    record.seal({"arm": "global", "seed": 0, "steps": 400, "valid/nats": 1.7})
    _, last, _ = ask("/content")
    assert "runs done" not in last
    assert "All runs have ended: 2 done." in last
    assert "<dt>Interim</dt>" not in last


def test_a_killed_run_is_stopped_on_the_page(runs: Path, ask: Ask) -> None:
    """It changes no file of its own."""
    record = going(runs)
    with hold(record):
        assert "running at 120 of 400" in ask("/content")[1]
        lock = runs / ".locks" / f"{record.name}.lock"
        owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "pid": 2**22 + 1}))
    content = ask("/content")[1]
    assert "stopped at 120 of 400" in content
    assert "running at" not in content
    assert "All runs have ended: 1 done, 1 stopped." in content


def test_nothing_else_is_given_out(runs: Path, ask: Ask) -> None:
    (runs / "secret").write_text("secret")
    for address in ("/secret", "/../runs/secret", "/%2e%2e/runs/secret", "/content/secret"):
        status, text, _ = ask(address)
        assert (status, "secret" in text) == (404, False)
    assert ask("/content?x=1")[0] == 404
    assert ask("/", Host="attacker.example:80")[0] == 403
    assert ask("/", Host="attacker.example")[0] == 403


def test_before_anything_can_be_compared_the_page_says_so(tmp_path: Path) -> None:
    assert "Nothing to compare yet" in Page(tmp_path, None, "moebench watch").content()
    make_run(tmp_path, "micro", rows=[], state="running")
    content = Page(tmp_path, None, "moebench watch").content()
    assert "Nothing to compare yet" in content
    assert "holds no finished run (1 running); wait for their first evaluation" in content


def test_what_is_damaged_while_the_page_is_served_is_named_on_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEAST_WAIT", 0.0)
    monkeypatch.setattr(watch, "SHARE", 0)
    page = Page(runs, "scope", "moebench watch")
    assert "Nothing to compare yet" not in page.content()
    (plan,) = runs.glob("studies/*/plan.json")
    plan.write_text("{")
    assert "is not a plan (is not a JSON object)" in page.content()


def told(process: Process) -> str:
    """What is on stderr so far, also before the process has begun."""
    with suppress(FileNotFoundError):
        return process.errors()
    return ""


def test_the_command_serves_until_a_signal(runs: Path) -> None:
    process = moebench("watch", "--json", cwd=runs.parent)
    try:
        until(lambda: "press Ctrl-C" in told(process))
        url = json.loads(process.output())["url"]
        port = url.removeprefix("http://127.0.0.1:").strip("/")
        busy = moebench("watch", "--port", port, cwd=runs.parent)
        unknown = moebench("watch", "--study", "scpe", cwd=runs.parent)
        assert (busy.wait(60), unknown.wait(60)) == (1, 2)
        assert busy.errors() == (
            f"error: --port {port}: cannot be used (Address already in use); choose another port\n"
        )
        known = "no such study in runs; there are scope"
        assert unknown.errors().startswith(f"error: --study scpe: {known}")
        until(lambda: "All runs have ended" in told(process))
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(60)
    first, *more = errors.splitlines()
    assert (process.returncode, first) == (0, "open it in a browser; press Ctrl-C to stop")
    assert more == ["All runs have ended: 1 done, 1 stopped."]  # said once
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", int(port)))
