"""Overrides for a small run, a plan of runs that nobody trains, and processes that do not train."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moebench.study import Job, Plan


@pytest.fixture
def small(text_folder: Path) -> Callable[..., list[str]]:
    """Returns the overrides of a small run, followed by the given ones."""

    def made(*more: str) -> list[str]:
        return [
            *("model=smoke", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
            *("data=folder", f"data.path={text_folder}", *more),
        ]

    return made


def a_plan(runs: int) -> Plan:
    config = {"train": {"steps": 6}}
    jobs = (Job(n, f"arm-s{n}-0", "arm", "0", n, (f"seed={n}",), config) for n in range(runs))
    return Plan("sweep", "", "", "arm", "valid/nats", tuple(jobs))


DONE = "Record(run).begin('a: 1', {}); Record(run).seal({}); say('done')\n"


class Script:
    """Replaces `moebench.study` in the launcher's processes with the code of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, code: str) -> None:
        (self.folder / "code_of_a_test.py").write_text(
            "import json, os, signal, sys, time\nfrom pathlib import Path\n"
            "from moebench.records import Record\n"
            "plan = Path(sys.argv[1]); number = int(sys.argv[2])\n"
            "run = plan.parents[2] / json.loads(plan.read_text())['runs'][number]['run']\n"
            "def say(state, **more):\n"
            "    run.mkdir(exist_ok=True); (run / 'config.yaml').write_text('a: 1')\n"
            "    more = {'step': 1, 'pid': os.getpid(), **more}\n"
            "    (run / 'status.json').write_text(json.dumps({'state': state, **more}))\n" + code
        )


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr("moebench.study.job.MODULE", "code_of_a_test")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Script(tmp_path)
