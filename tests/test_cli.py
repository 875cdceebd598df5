"""The command line: what it prints where, its exit codes, and one line for each error."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from moebench import cli
from moebench.errors import MoebenchError
from moebench.records import Record

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Runs the command line in this process, in a folder that is empty at first."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    before = {number: signal.getsignal(number) for number in STOPPING}

    def made(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["moebench", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert isinstance(stop.value.code, int)
        out, err = capsys.readouterr()
        return Result(stop.value.code, out, err)

    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small(text_folder: Path) -> list[str]:
    return [
        *("model=smoke", "train.steps=6", "global_bsz=8", "seq_len=32", "data.valid_sequences=4"),
        *("data=folder", f"data.path={text_folder}", "run.device=cpu", "run.threads=1"),
    ]


# Errors

NO_KEY = "no such key; moebench train --print-config shows them all"
WHOLE = "must be a whole number, written out (1000, not 1e3)"
WRONG = {
    # words
    "trian": "No such command 'trian'. Did you mean 'train'?",
    "data shwo": "No such command 'shwo'. Did you mean 'show'?",
    "train --dryrun": "No such option: --dryrun (Possible options: --dry-run)",
    "sweep --resume": "No such option: --resume",
    "sweep --jobs": "Option '--jobs' requires an argument.",
    "sweep --jobs 0": "Invalid value for '--jobs': 0: must be a whole number from 1 to 65535",
    "sweep --jobs x": "Invalid value for '--jobs': x: must be a whole number from 1 to 65535",
    "sweep --jobs -1": "Invalid value for '--jobs': -1: must be a whole number from 1 to 65535",
    "dashboard --port 99999": "Invalid value for '--port': 99999: must be a whole number from 1 to",
    "train --resume --force": "--resume --force: one goes on with a run, one starts afresh; keep",
    # keys
    "train modle=smoke": "modle=smoke: no such key; did you mean model?",
    "train model.topk=2": "model.topk=2: no such key; did you mean model.top_k?",
    "train topk=2": "topk=2: no such key; did you mean model.top_k?",
    "train SEED=2": "SEED=2: no such key; did you mean seed?",
    "train xyzzy=2": f"xyzzy=2: {NO_KEY}",
    "train =1": f"=1: {NO_KEY}",
    "train model.top_k": "model.top_k: is neither an option nor an override; write key=value",
    "train +new.key=1": "+new.key=1: no key can be added; drop the + if the key exists",
    "train ++model.top_k=1": "++model.top_k=1: no key can be added; drop the + if the key exists",
    "train ~model": "~model: no key can be taken away; set it to another value",
    "train ~model.top_k": "~model.top_k: no key can be taken away; set it to another value",
    "train hydra.run.dir=x": f"hydra.run.dir=x: {NO_KEY}",
    "train hydra/launcher=x": f"hydra/launcher=x: {NO_KEY}",
    "train model._target_=os.system": f"model._target_=os.system: {NO_KEY}",
    "train study=demo": "study=demo: is for moebench sweep; leave it out",
    "train seed=1 seed=2": "seed: is set twice (seed=1 and seed=2); keep one",
    "train model=tiny model=tiny": "model: is set twice (model=tiny and model=tiny); keep one",
    # presets
    "train model=smol": "model=smol: no such model; did you mean small or smoke?",
    "train model=": "model=: no such model; there are ",
    "train model=null": "model=null: no such model; there are ",
    "train model=../../x": "model=../../x: no such model; there are ",
    "train model=/etc/passwd": "model=/etc/passwd: no such model; there are ",
    "train scope=../scope/micro": "scope=../scope/micro: no such scope; there are domain, global, ",
    "train model=[tiny]": "model=['tiny']: no such model; did you mean tiny?",
    "train model={_target_:os.system}": "model={'_target_': 'os.system'}: no such model; there are",
    "train model@x=tiny": "model@x=tiny: a preset stays in its group; drop @x",
    "train experiment=x": "experiment=x: no such experiment; there are small-bpe, tiny-bpe",
    # values
    "train model.top_k=two": f"model.top_k=two: {WHOLE}",
    "train model.top_k=1e0": f"model.top_k=1e0: {WHOLE}",
    "train seed=true": f"seed=true: {WHOLE}",
    "train seed=": f"seed=: {WHOLE}",
    "train seed=null": f"seed=null: {WHOLE}",
    "train router.renormalize=maybe": "router.renormalize=maybe: must be true or false",
    "train data.domains=python": "data.domains=python: must be a list, as in [a,b], or null",
    "train data.domains=[[a]]": "data.domains=[[a]]: must be a list, as in [a,b], or null",
    "train data.path=": "data.path=: must be a word, or null",
    "train optim.lr=nan": "optim.lr=nan: must be a finite number",
    "train optim.lr=-inf": "optim.lr=-inf: must be a finite number",
    "train optim.lr=1e400": "optim.lr=inf: must be a finite number",
    "train optim.lr=0": "optim.lr=0.0: must be above 0",
    "train seed=-1": "seed=-1: must be between 0 and 4294967295",
    "train train.precision=fp8": "train.precision=fp8: must be one of fp32, bf16, fp64",
    "train data.path=${oc.env:HOME}": "data.path=${oc.env:HOME}: interpolations are not taken from",
    "train data.path=~/x": "data.path=~/x: does not parse (token recognition error at: '~'); quote "
    """the value, as in 'data.path="~/x"'""",
    "train seed=[1": "seed=[1: does not parse (",
    "train seed=1\nseed=2": "seed=1 seed=2: does not parse (",
    "train seed=\x1b[31m1": "seed=?[31m1: does not parse (",
    "train seed=nope(3)": "seed=nope(3): does not parse (",
    f"train seed={'1' * 5000}": f"seed={'1' * 5000}: ",
    # values that do not go together
    "train model.top_k=9 model.num_experts=8": "model.top_k=9: must be between 1 and "
    "model.num_experts=8",
    "train balance_bsz=3": "balance_bsz=3: must divide global_bsz=128; try balance_bsz=2",
    "train scope=micro balance_bsz=128": "balance_bsz=128: contradicts scope=micro, whose groups "
    "are micro_bsz (4); use scope=global balance_bsz=128",
    "train data=folder": "data.path=null: data=folder needs a folder; add data.path=DIR",
    "train data.path=x": "data.path=x: data=installed reads no folder; add data=folder",
    # sweeps
    "train seed=0,1": "seed=0,1: is a sweep, where one value is needed; use moebench sweep, or ",
    "train seed=choice(1)": "seed=choice(1): is a sweep, where one value is needed; use moebench ",
    "sweep seed=range(0)": "seed=range(0): the sweep is empty; give at least one value",
    "sweep scope=glob(x*)": "scope=glob(x*): the sweep is empty; give at least one value",
    "sweep optim.lr=interval(0,1)": "optim.lr=interval(0,1): is no sweep that can be run (",
    "sweep seed=range(0,1000000000)": "seed=range(0,1000000000): is more than 100000 runs; sweep ",
    "sweep model.top_k=1,99": "model.top_k=99: must be between 1 and model.num_experts=16",
    "sweep optim.lr=0.1,two": "optim.lr=two: must be a number",
    "sweep seed=0,1 modle=x": "modle=x: no such key; did you mean model?",
    "sweep study=dem": "study=dem: no such study; did you mean demo?",
    "sweep study=../study/demo": "study=../study/demo: no such study; there are ",
    "sweep study=demo study=demo": "study: is set twice (demo and demo); keep one",
    "sweep study=demo study.size=x": "study.size=x: study=demo has no such size; it has ",
    "sweep study=demo study.sze=x": "study.sze=x: no such key; did you mean study.size?",
    "sweep study=demo scope=none": "scope=none: study=demo varies scope itself; leave it out, or ",
    # files and folders
    "train data=folder data.path=nope": "data.path=nope: there is no such folder; create it or ",
    "train --config nope": "--config nope: cannot be used (No such file or directory); name a ",
    "train --config .": "--config .: cannot be used (Is a directory); name a run's config.yaml",
    "train --config-dir nope": "--config-dir nope: is not a folder; name one with presets",
    "data show --config-dir nope": "--config-dir nope: is not a folder; name one with presets",
    "report": "runs: is no directory; name one with runs, or make some with moebench sweep",
    "report nope": "nope: is no directory; name one with runs, or make some with moebench sweep",
    "report --study nope": "--study nope: no such study in ",
    "dashboard": "runs: holds no runs; moebench train makes one",
    "verify": "runs: is no directory; name a run, or a folder of runs",
    "verify . nope": "nope: is no directory; name a run, or a folder of runs",
    "verify .": ".: holds no finished run, and only those are sealed",
    "data check data=folder data.path=nope": "data.path=nope: there is no such folder; create it ",
}


@pytest.mark.parametrize(
    "line", WRONG, ids=lambda line: line[:60].encode("unicode_escape").decode()
)
def test_an_error_is_one_line_and_leaves_nothing_behind(call: Call, line: str) -> None:
    result = call(*line.split(" "))
    assert result.err.startswith(f"error: {WRONG[line]}")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert (result.code, result.out) == (2, "")
    assert list(Path().iterdir()) == []


def test_an_error_of_a_word_that_is_no_text_is_one_line(call: Call) -> None:
    result = call("train", os.fsdecode(b"data.path=\xff"))
    assert result.code == 2
    assert result.err.startswith("error: data.path=")
    assert result.err.count("\n") == 1


BROKEN = {
    "nothing in it": ({}, "holds no domain; put text in"),
    "an empty file": ({"a.txt": b""}, "a' has too little text to train on"),
    "too little": ({"a.txt": b"one\n"}, "'a' has too little text"),
    "no UTF-8": ({"a.txt": b"\xff" * 9999}, "is not UTF-8; convert the file to UTF-8"),
    "no JSON": ({"a.jsonl": b"{\n"}, 'a.jsonl:1: is not JSON (Expecting property name'),
    "no gzip": ({"a.jsonl.gz": b"x" * 99}, "a.jsonl.gz: broken gzip"),
    "a hostile name": ({"[red]\x1b[31m.txt": b""}, "too little text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", ["train", "sweep", "data show"])
def test_broken_data_is_one_line_and_leaves_no_run(
    call: Call, tmp_path: Path, name: str, command: str
) -> None:
    files, error = BROKEN[name]
    (tmp_path / "text").mkdir()
    for file, content in files.items():
        (tmp_path / "text" / file).write_bytes(content)
    more = ["seed=0,1"] if command == "sweep" else []
    result = call(*command.split(), "data=folder", f"data.path={tmp_path / 'text'}", *more)
    assert (result.code, result.out) == (2, "")
    assert error in result.err.splitlines()[-1]
    assert [line for line in result.err.splitlines() if line.startswith("error: ")] == [
        result.err.splitlines()[-1]
    ]
    assert "\x1b" not in result.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("runs", ["/dev/null/x", "/dev/null", "file", "/proc/nope"])
@pytest.mark.parametrize("command", [["train"], ["train", "--force"], ["sweep", "seed=0,1"]])
def test_runs_that_cannot_be_written_are_one_line(
    call: Call, small: list[str], runs: str, command: list[str]
) -> None:
    Path("file").write_text("")
    result = call(*command, *small, "--runs-dir", runs)
    assert (result.code, result.out) == (2, "")
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    [error] = errors
    assert re.match(rf"error: {runs}.*: cannot be written \(.+\); name another directory", error)
    assert Path("file").read_text() == ""


def test_an_overlay_that_shadows_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text("")
    for command in (["train"], ["sweep", "seed=0,1"], ["data", "show"]):
        result = call(*command, "--config-dir", tmp_path / "mine")
        assert result.err == (
            f"error: --config-dir {tmp_path / 'mine'}: model/tiny.yaml would shadow the shipped "
            "preset; rename it\n"
        )
        assert result.code == 2


def test_a_bug_is_one_line_too_and_says_how_to_see_it(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("of\nnothing")

    monkeypatch.setattr("moebench.config.compose.Composer.__init__", broken)
    result = call("train")
    assert result.code == 1
    assert result.err == (
        "error: unexpected ZeroDivisionError: of nothing; this is a bug in moebench "
        "(MOEBENCH_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("MOEBENCH_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["moebench", "train"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("code", [1, 2])
def test_an_errors_exit_code_is_the_commands(
    call: Call, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def broken(*_: Any) -> None:
        error = MoebenchError("no")
        error.exit_code = code
        raise error

    monkeypatch.setattr("moebench.config.compose.Composer.__init__", broken)
    assert call("train") == (code, "", "error: no\n")


# Help

COMMANDS = ["train", "sweep", "report", "dashboard", "verify", "doctor"]
COMMANDS += [f"data {each}" for each in ("prepare", "show", "check")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(call: Call, command: str) -> None:
    result = call(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert re.search(rf"Examples?:\s+moebench {command}\b", result.out)
    assert max(map(len, result.out.splitlines())) <= 80


def test_the_example_of_every_command_is_one_that_parses(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in COMMANDS:
        text = " ".join(call(*command.split(), "--help").out.split())
        examples = re.search(r"Examples?: (.*?) ╭", text)
        assert examples
        for example in examples[1].split(", moebench "):
            words = example.removeprefix("moebench ").split()
            overrides = [word for word in words if "=" in word and not word.startswith("data.path")]
            if words[0] == "train":
                assert call(*words, "--print-config").code == 0
            elif overrides and words[0] == "data":
                assert overrides == ["data=folder"]


def test_help_lists_all_commands_and_the_exit_codes(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    for command in {command.split()[0] for command in COMMANDS}:
        assert re.search(rf"│ {command} ", result.out)
    assert "75 stopped by SIGTERM" in " ".join(result.out.split())
    assert call().out.split() == result.out.split()
    assert (call().code, call().err) == (2, "")
    assert call("--version").out.startswith("moebench 0.")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, moebench.cli\n"
        "sys.argv = ['moebench', 'train', '--help']\n"
        "try: moebench.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'hydra', 'omegaconf', 'tensorboard', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_config_is_shown_without_torch() -> None:
    code = (
        "import sys, moebench.cli\n"
        "sys.argv = ['moebench', 'train', '--print-config']\n"
        "try: moebench.cli.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# Data


def test_data_are_shown_in_eighty_columns(call: Call, text_folder: Path) -> None:
    words = ["data=folder", f"data.path={text_folder}"]
    result = call("data", "show", *words)
    assert result.code == 0
    title, _, header, _, *rows, _ = result.out.splitlines()
    assert re.match(r"data [0-9a-f]{10} *$", title)
    cells = [cell.strip() for cell in header.strip("┃").split("┃")]
    assert cells == ["domain", "train docs", "MB", "valid docs", "kB", "overlap", "sample"]
    assert [row.strip("│").split("│")[0].strip() for row in rows] == ["digits", "letters", "shapes"]
    assert max(map(len, result.out.splitlines())) <= 80
    shown = json.loads(call("data", "show", "--json", *words).out)
    assert shown["content_hash"].startswith(title.split()[1])
    assert list(shown["domains"][0]) == [
        *("domain", "train_documents", "train_mb", "train_tokens", "valid_documents", "valid_kb"),
        *("duplicates", "overlap", "licence", "sample"),
    ]


def test_text_that_would_steer_the_terminal_is_shown_as_text(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    line = "\x1b[31m [bold] [/nope] \x07 words of a hostile text {}\n"
    (folder / "[red].txt").write_text("".join(line.format(i) for i in range(400)))
    result = call("data", "show", "data=folder", f"data.path={folder}")
    assert result.code == 0
    assert "[red]" in result.out
    assert "[bold]" in result.out
    assert not {"\x1b", "\x07"} & {*result.out, *result.err}


def test_data_are_prepared_checked_and_made_again(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"a line of some text, the {i}th\n" for i in range(400)))
    words = ["data=folder", f"data.path={folder}"]
    first = call("data", "prepare", *words)
    assert first.code == 0
    content_hash, directory = first.out.split()
    assert "preparing a in" in first.err
    assert len([line for line in first.err.splitlines() if "preparing" in line]) == 1
    found = json.loads(call("data", "prepare", "--json", *words).out)
    assert found == {"schema_version": 1, "content_hash": content_hash, "directory": directory}
    warning = "warning: all text is of one domain, a: data.homogeneity means nothing\n"
    assert call("data", "check", *words) == (0, f"{directory}: whole and untouched\n", warning)
    tokens = Path(directory) / "a.train.bin"
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"X")
    damaged = call("data", "check", *words)
    assert (damaged.code, damaged.out) == (2, "")
    said = damaged.err.removeprefix(warning)
    assert said.startswith(f"error: {tokens}: does not match its checksum")
    assert call("data", "prepare", *words).out == first.out
    assert call("data", "check", *words).code == 0


# Training


def test_print_config_is_yaml_or_json(call: Call) -> None:
    text = call("train", "--print-config", "model=smoke").out
    assert text.startswith("scope: global\nbalance_bsz: 128\n")
    Path("config.yaml").write_text(text)
    assert call("train", "--print-config", "--config", "config.yaml").out == text
    shown = json.loads(call("train", "--print-config", "--json", "model=smoke").out)
    assert shown["model"]["d_model"] == 32


def test_a_dry_run_says_what_would_be_done_and_writes_no_run(call: Call, small: list[str]) -> None:
    result = call("train", "--dry-run", *small)
    assert re.fullmatch(r"runs/global-s0-[0-9a-f]{10}: 6 steps of 8 sequences\n", result.out)
    found = json.loads(call("train", "--dry-run", "--json", *small).out)
    assert found["run"] == result.out.split(":")[0]
    assert (found["steps"], found["done"]) == (6, False)
    planned = call("sweep", "--dry-run", *small, "seed=0,1")
    assert "global (baseline)" in planned.out
    assert max(map(len, planned.out.splitlines()[-5:])) <= 80
    assert planned.err == ""
    runs = json.loads(call("sweep", "--dry-run", "--json", *small, "seed=0,1").out)["runs"]
    assert [run["state"] for run in runs] == ["waiting", "waiting"]
    assert list(Path().iterdir()) == []


def test_a_run_is_trained_once_continued_and_made_afresh(call: Call, small: list[str]) -> None:
    first = call("train", "--json", *small)
    assert first.code == 0
    made = json.loads(first.out)
    record = Record(Path(made["run"]))
    assert made == {"schema_version": 1, "run": str(record.path), "summary": record.summary()}
    assert "step 6/6" in first.err
    assert "0.1 per router" not in first.err
    assert re.search(r"balance loss weight [0-9.e-]+, [0-9.e-]+ per router\n", first.err)

    for option in ([], ["--resume"]):
        again = call("train", "--json", *option, *small)
        assert (again.code, again.out) == (0, first.out)
        assert again.err == f"{record.path}: is done already\n"
    dry = call("train", "--dry-run", *small)
    assert dry.out == f"{record.path}: 6 steps of 8 sequences (is done already)\n"
    assert call("verify").out == f"{record.path}: whole and untouched\n"
    assert call("verify", record.path, "--json").out == (
        json.dumps({"schema_version": 1, "damage": {str(record.path): []}}, indent=2) + "\n"
    )

    (record.path / "summary.json").unlink()
    record.set_status("stopped", step=6)
    unfinished = call("train", *small)
    assert (unfinished.code, unfinished.out) == (2, "")
    assert unfinished.err.splitlines()[-1] == (
        f"error: {record.path}: is an unfinished run; --resume goes on with it, "
        "--force starts afresh"
    )
    resumed = call("train", "--resume", *small)
    assert resumed.code == 0
    assert str(record.path) in resumed.out
    rows = [row["valid/nats"] for row in record.rows() if "valid/nats" in row]

    (record.path / "metrics.jsonl").write_text("{}\n")
    Path("runs/studies/sweep-0").mkdir(parents=True)
    found = call("verify", *Path("runs").glob("*"))  # as the shell writes out runs/*
    assert (found.code, found.out) == (1, f"{record.path}: metrics.jsonl: was changed\n")
    assert call("train", "--force", *small).code == 0
    assert [row["valid/nats"] for row in record.rows() if "valid/nats" in row] == rows
    assert call("verify").code == 0

    again = call("train", "--config", record.path / "config.yaml", "--runs-dir", "elsewhere")
    assert again.code == 0
    assert (Path("elsewhere") / record.name / "summary.json").is_file()


def test_a_run_that_began_and_never_spoke_can_be_resumed(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moebench.experiment.make_state", interrupted)
        assert call("train", *small).code == 130
    assert len(list(Path("runs").glob("global-*"))) == 1
    assert call("train", *small).code == 2
    assert call("train", "--resume", *small).code == 0


def test_a_run_that_fails_says_step_and_term(call: Call, small: list[str]) -> None:
    result = call("train", *small, "optim.lr=1e30")
    assert (result.code, result.out) == (1, "")
    error = result.err.splitlines()[-1]
    assert re.match(
        r"error: step \d: the (cross-entropy|gradient of \S+) is (nan|not finite)", error
    )
    [record] = [Record(path) for path in Path("runs").glob("global-*")]
    status = record.status()
    assert (status["state"], f"error: {status['reason']}") == ("failed", error)
    assert not record.is_done()


def test_a_summary_with_hostile_content_is_shown_without_a_trace(
    call: Call, small: list[str]
) -> None:
    made = json.loads(call("train", "--json", *small).out)
    record = Record(Path(made["run"]))
    record.seal({"valid/nats": "[/red]\x1b", "valid/ppl": [1], "seconds": 1e300})
    result = call("train", *small)
    assert result.code == 0
    assert "\x1b" not in result.out
    (record.path / "summary.json").write_text("{")
    broken = call("train", *small)
    assert broken.code == 2
    assert broken.err.splitlines()[-1].endswith("is no JSON object; the record is damaged")


def test_runs_lie_where_they_are_told_to_whatever_the_name(call: Call, small: list[str]) -> None:
    name = "[/red] é {a} $(x)"
    result = call("train", *small, "--runs-dir", name)
    assert result.code == 0
    assert result.out.startswith(f"{name}/global-s0-")
    assert call("verify", "--runs-dir", name).code == 0


# Sweeps


def test_a_grid_is_trained_and_a_second_sweep_does_nothing(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("random.py").write_text("raise SystemExit('a module in the working directory was run')")
    words = ["sweep", "--jobs", "2", *small, "scope=micro,global", "seed=0"]
    first = call(*words)
    assert first.code == 0
    assert first.out == ""
    lines = first.err.splitlines()
    assert lines[0].startswith("sweep-")
    assert sum(line.startswith("done  micro-s0-") for line in lines) == 1
    assert sum(line.startswith("done  global-s0-") for line in lines) == 1
    [plan] = Path("runs").glob("studies/*/plan.json")
    assert lines[-1] == f"moebench report --study {plan.parent.name} compares the runs"
    runs = json.loads(plan.read_text())["runs"]
    assert [run["arm"] for run in runs] == ["micro", "global"]
    records = [Record(Path("runs") / run["run"]) for run in runs]
    assert [record.damage() for record in records] == [[], []]
    batches = [record.rows()[0]["valid/nats"] for record in records]
    assert batches[0] == batches[1], "arms of a seed begin with equal weights"

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    before = {
        path: path.stat().st_mtime_ns for record in records for path in record.path.rglob("*")
    }
    monkeypatch.setattr("moebench.study.subprocess.Popen", refuse)
    second = call(*words, "--json")
    assert second.code == 0
    assert [run["state"] for run in json.loads(second.out)["runs"]] == ["done", "done"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    report = call("report", "--study", plan.parent.name, "--json")
    assert report.code == 0
    assert {row["arm"] for row in json.loads(report.out)["rows"]} == {"micro", "global"}


def test_one_run_that_fails_leaves_the_others(call: Call, small: list[str]) -> None:
    words = ["sweep", "--jobs", "2", *small, "optim.lr=1e30,0.003", "seed=0"]
    result = call(*words)
    assert (result.code, result.out) == (3, "")
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    [error] = errors
    records = [Record(path) for path in Path("runs").glob("global-*")]
    assert sorted(record.status()["state"] for record in records) == ["done", "failed"]
    [failed] = [record for record in records if not record.is_done()]
    assert re.match(rf"error: {failed.name}: step \d: the ", error)
    assert error == f"error: {failed.name}: {failed.status()['reason']}"


# Signals and pipes, in a process of its own

STOPS = [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
ENDLESS = ("train.steps=1000000", "data.max_epochs=1e9", "run.checkpoint_every=1000000")


def start(small: list[str], *words: str) -> subprocess.Popen[str]:
    kept = [each for each in small if not each.startswith("train.steps")]
    return subprocess.Popen(
        [sys.executable, "-m", "moebench.cli", *words, *kept, *ENDLESS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def under_way(count: int) -> list[Record]:
    """The records of as many runs, once each has taken some steps."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        records = [Record(path) for path in Path("runs").glob("global-*")]
        if [record.status()["step"] > 2 for record in records] == [True] * count:
            return records
        time.sleep(0.05)
    raise AssertionError("no run got under way")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_run_that_is_stopped_can_be_resumed(
    call: Call, small: list[str], number: signal.Signals, code: int
) -> None:
    process = start(small, "train")
    [record] = under_way(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    step = record.status()["step"]
    said = f"{record.path}: stopped by {number.name} at step {step}; --resume goes on from there"
    assert err.splitlines()[-1] == f"error: {said}"
    assert "Traceback" not in err
    assert record.status()["state"] == "stopped"
    assert record.status()["reason"] == said
    assert (record.path / "checkpoints" / f"step-{step}" / "state.json").is_file()


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_sweep_that_is_stopped_leaves_no_process_and_can_be_gone_on_with(
    call: Call, small: list[str], number: signal.Signals, code: int
) -> None:
    process = start(small, "sweep", "seed=0,1", "--jobs", "2")
    records = under_way(2)
    started = children(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.splitlines()[-1].startswith(f"error: stopped by {number.name}; ")
    assert "Traceback" not in err
    assert len(started) == 2
    assert not any(map(is_alive, started))
    for record in records:
        status = record.status()
        assert status["state"] == "stopped"
        assert (record.path / "checkpoints" / f"step-{status['step']}").is_dir()


@pytest.mark.slow
def test_a_run_of_a_sweep_that_is_killed_leaves_the_other_and_is_made_up_for(
    call: Call, small: list[str], tmp_path: Path
) -> None:
    words = ["sweep", *small, "train.steps=150", "data.max_epochs=100", "seed=0,1"]
    words.remove("train.steps=6")
    process = subprocess.Popen(
        [sys.executable, "-m", "moebench.cli", *words, "--jobs", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    records = under_way(2)
    os.kill(records[0].status()["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert err.splitlines()[-1] == f"error: {records[0].name}: killed by signal 9 (Killed)"
    assert records[0].status()["state"] == "failed"
    assert records[0].status()["reason"] == "killed by signal 9 (Killed)"
    assert records[1].damage() == []
    before = (records[1].path / "summary.json").stat().st_mtime_ns
    assert call(*words).code == 0
    assert records[0].damage() == []
    assert (records[1].path / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_a_signal_before_a_run_has_begun_is_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(
        "moebench.config.compose.Composer.__init__", lambda *_: os.kill(os.getpid(), number)
    )
    result = call("train")
    assert result.code == (130 if number == signal.SIGINT else 75)
    assert result.err.startswith(f"error: stopped by {number.name}; ")
    assert result.err.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("words", ["--help", "train --print-config", "data show"])
def test_a_pipe_that_is_closed_early_is_no_error(
    call: Call, small: list[str], words: str, reader: str
) -> None:
    data = [each for each in small if each.startswith("data")]
    call("data", "prepare", *data)  # so that no progress is told below
    more = data if words != "--help" else []
    command = [sys.executable, "-m", "moebench.cli", *words.split(), *more]
    shell = f'exec 3>&1; ("$@"; echo $? >&3) | {reader} > /dev/null'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "moebench.cli", "train", "--print-config"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_the_command_is_installed() -> None:
    found = shutil.which("moebench", path=Path(sys.executable).parent)
    assert found
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("moebench ")
