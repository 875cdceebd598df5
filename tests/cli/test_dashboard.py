"""`moebench dashboard`: the address goes to stdout, the rest to stderr, and signals end it."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from moebench.records import Record
from tests.calls import Call, children
from tests.processes import is_alive


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_runs_are_served_until_a_signal(call: Call, number: signal.Signals) -> None:
    for name in ("broken", "good"):
        record = Record(Path("runs", name))
        record.begin("seed: 0\n", {"arm": "micro"})
        record.append({"step": 0, "train/loss": 5.0})
    Path("runs/broken/manifest.json").write_text("{")
    command = [sys.executable, "-m", "moebench.cli", "dashboard", "--rebuild", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        printed = json.loads("".join(process.stdout.readline() for _ in range(4)))
        assert printed["schema_version"] == 1
        address, _, fragment = printed["url"].partition("#")
        page, _, query = address.partition("?")
        assert fragment == "custom_scalars&_smoothingWeight=0"
        look = urllib.parse.parse_qs(query)
        assert look["smoothing"] == ["0"]
        pattern = look["runColorGroup"][0].removeprefix("regex:")
        name = re.match(pattern, "micro-homogeneity-0-s12-0a1b2c3d4e/tensorboard")
        assert name is not None
        assert name[1] == "micro-homogeneity-0"
        assert page.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{page}data/logdir") as answer:
            assert json.load(answer)["logdir"] == "runs"
        started = children(process.pid)
    finally:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    lines = err.splitlines()
    assert lines[0] == (
        "skipped: runs/broken/manifest.json: is not a JSON object; the record is damaged"
    )
    assert lines[-1] == "open it in a browser; press Ctrl-C to stop"
    assert "Traceback" not in err
    deadline = time.monotonic() + 10  # TensorBoard's data server ends when its pipe closes
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, started))
    assert len(list(Path("runs/good/tensorboard").iterdir())) == 1
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", int(page.split(":")[2].strip("/"))))


def test_a_signal_before_the_page_is_served_prints_nothing(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moebench.dashboard.records_to_view", interrupted)
    result = call("dashboard")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_a_port_in_use_is_one_line(call: Call) -> None:
    Record(Path("runs/one")).begin("seed: 0\n", {"arm": "micro"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "moebench.cli", "dashboard", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"error: --port: .*{port}.*; choose another port", error)
