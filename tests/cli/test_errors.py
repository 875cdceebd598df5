"""Invalid input: one line on stderr, an exit code, and no files left behind."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from moebench import cli
from moebench.errors import MoebenchError
from tests.calls import Call

NO_KEY = "no such key; moebench train --print-config shows them all"
WHOLE = "must be a whole number, written out (1000, not 1e3)"
WRONG = {
    # words
    "trian": "No such command 'trian'. Did you mean 'train', 'track'?",
    "data shwo": "No such command 'shwo'. Did you mean 'show'?",
    "train --dryrun": "No such option: --dryrun (Possible options: --dry-run)",
    "sweep --resume": "No such option: --resume",
    "sweep --jobs": "Option '--jobs' requires an argument.",
    "sweep --jobs 0": "Invalid value for '--jobs': 0: must be a whole number from 1 to 65535",
    "sweep --jobs x": "Invalid value for '--jobs': x: must be a whole number from 1 to 65535",
    "sweep --jobs -1": "Invalid value for '--jobs': -1: must be a whole number from 1 to 65535",
    "sweep --timeout 0": "Invalid value for '--timeout': 0: must be a time above 0, as in 90s, ",
    "sweep --timeout 5x": "Invalid value for '--timeout': 5x: must be a time above 0, as in 90s, ",
    "sweep --timeout -1s": "Invalid value for '--timeout': -1s: must be a time above 0, as in 90s",
    "sweep --timeout nan": "Invalid value for '--timeout': nan: must be a time above 0, as in 90s",
    "sweep --status": "runs: no sweep was started here; moebench sweep starts one",
    "sweep --status demo": "runs: no sweep was started here; moebench sweep starts one",
    "sweep --status --dry-run": "--status --dry-run: one shows runs, one plans them; use only one",
    "sweep --status study=dem": "study=dem: no such study; did you mean demo?",
    "sweep --status demo seed=1": "demo: is neither an option nor an override; write key=value",
    "dashboard --port 99999": "Invalid value for '--port': 99999: must be a whole number from 1 to",
    "train --resume --force": "--resume --force: one continues a run, one starts over; use",
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
    "train experiment=x": "experiment=x: no such experiment; there are deepseek-v3, ",
    "train method=pusch": "method=pusch: no such method; there are base, bias, ",
    "train balance.terms=[{scope:globl}]": "balance.terms[0].scope=globl: must be one of none, "
    "sequence, micro, shuffled, global, domain; did you mean global?",
    "sweep scope=micro seed=0": "scope=micro: is one value, where a sweep needs several, as in "
    "scope=A,B; moebench train makes one run (without a list of values a sweep runs study=scope, ",
    "sweep scope=micro,global study.order=[]": "scope=micro,global: makes a grid, which takes no "
    "study.* settings; leave those out, or name a study, as in study=scope",
    "train experiment=tiny-bep": "experiment=tiny-bep: no such experiment; did you mean tiny-bpe?",
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
    "train train.precision=fp8": "train.precision=fp8: must be one of auto, fp32, bf16, fp64",
    "train data.path=${oc.env:HOME}": "data.path=${oc.env:HOME}: interpolations are not taken from",
    "train data.path=~/x": "data.path=~/x: does not parse (token recognition error at: '~'); quote "
    """the value, as in 'data.path="~/x"'""",
    "train seed=[1": "seed=[1: does not parse (",
    "train seed=1\nseed=2": "seed=1 seed=2: does not parse (",
    "train seed=\x1b[31m1": "seed=?[31m1: does not parse (",
    "train seed=nope(3)": "seed=nope(3): does not parse (",
    f"train seed={'1' * 5000}": f"seed={'1' * 195}[4606 characters]{'1' * 199}: ",
    f"train seed={'1' * 20_000}": f"seed={'1' * 195}[19606 characters]{'1' * 199}: has 20005 char",
    f"train seed={'[' * 3000}": f"seed={'[' * 195}[2606 characters]{'[' * 199}: is nested",
    # values that do not go together
    "train model.top_k=9 model.num_experts=8": "model.top_k=9: must be between 1 and "
    "model.num_experts=8",
    "train balance_bsz=3": "balance_bsz=3: must divide global_bsz=128; try balance_bsz=2",
    "train scope=micro balance_bsz=128": "balance_bsz=128: contradicts scope=micro, whose groups "
    "hold micro_bsz=4 sequences; use scope=global balance_bsz=128",
    "train data=folder": "data.path=null: data=folder needs a folder; add data.path=DIR",
    "train data.path=x": "data.path=x: data=installed reads no folder; add data=folder",
    # sweeps
    "train seed=0,1": "seed=0,1: is a sweep, where one value is needed; use moebench sweep, or ",
    "train seed=choice(1)": "seed=choice(1): is a sweep, where one value is needed; use moebench ",
    "sweep seed=range(0)": "seed=range(0): the sweep is empty; give at least one value",
    "sweep scope=glob(x*)": "scope=glob(x*): the sweep is empty; give at least one value",
    "sweep optim.lr=interval(0,1)": "optim.lr=interval(0,1): is not a sweep that can run (",
    "sweep seed=range(0,1000000000)": "seed=range(0,1000000000): is more than 10000 runs; sweep ",
    "sweep scope=range(1,1000000000)": "scope=range(1,1000000000): names more than there "
    "are; list some of domain, global, ",
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
    "report": "runs: is not a directory; name one with runs, or make some with moebench sweep",
    "report nope": "nope: is not a directory; name one with runs, or make some with moebench sweep",
    "report --study nope": "--study nope: no such study in ",
    "dashboard": "runs: contains no runs; moebench train makes one",
    "verify": "runs: is not a directory; name a run, or a folder of runs",
    "verify . nope": "nope: is not a directory; name a run, or a folder of runs",
    "verify .": ".: contains no run; name one, or --runs-dir",
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


MICRO = "contradicts scope=micro, whose groups hold micro_bsz=4 sequences; use scope=global"
SEVERAL = {
    "train modle=x seed=1 sede=1": [
        "modle=x: no such key; did you mean model?",
        "sede=1: no such key; did you mean seed?",
    ],
    "sweep model.top_k=1,99,98 seed=0,1": [
        "model.top_k=99: must be between 1 and model.num_experts=16",
        "model.top_k=98: must be between 1 and model.num_experts=16",
    ],
    "sweep scope=micro,macro,globl": [
        "scope=macro: no such scope; did you mean micro?",
        "scope=globl: no such scope; did you mean global?",
    ],
    "sweep data=folder data.path=a,b seed=0,1": [
        "data.path=a: there is no such folder; create it or correct the path",
        "data.path=b: there is no such folder; create it or correct the path",
    ],
    "sweep --config-dir {tmp} study=unknown": [
        "study=unknown: scope=mico: no such scope; did you mean micro?",
        "study=unknown: model.topk=3: no such key; did you mean model.top_k?",
    ],
    "sweep --config-dir {tmp} study=wrong seed=0,1": [
        "balance_bsz=7: must divide global_bsz=128; try balance_bsz=4",
        f"balance_bsz=32: {MICRO} balance_bsz=32",
    ],
}


@pytest.mark.parametrize("line", SEVERAL)
def test_all_errors_are_reported_before_any_run(call: Call, tmp_path: Path, line: str) -> None:
    (tmp_path / "study").mkdir()
    for name, arms in (
        ("unknown", "scope=mico, scope=micro, model.topk=3"),
        ("wrong", "scope=micro, scope=micro balance_bsz=7, scope=micro balance_bsz=32"),
    ):
        (tmp_path / "study" / f"{name}.yaml").write_text(f"arms: [{arms}]\nbaseline: micro\n")
    result = call(*line.format(tmp=tmp_path).split())
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [f"error: {word}" for word in SEVERAL[line]]
    assert list(Path().iterdir()) == []


def test_an_error_about_an_undecodable_word_is_one_line(call: Call) -> None:
    result = call("train", os.fsdecode(b"data.path=\xff"))
    assert result.code == 2
    assert result.err.startswith("error: data.path=")
    assert result.err.count("\n") == 1


BROKEN = {
    "nothing in it": ({}, "holds no domain; put text in"),
    "an empty file": ({"a.txt": b""}, "'a' has no text, as all its files or rows are empty"),
    "too little": ({"a.txt": b"one\n"}, "'a' has too little text"),
    "no UTF-8": ({"a.txt": b"\xff" * 9999}, "is not UTF-8; convert the file to UTF-8"),
    "no JSON": ({"a.jsonl": b"{\n"}, 'a.jsonl:1: is not JSON (Expecting property name'),
    "no gzip": ({"a.jsonl.gz": b"x" * 99}, "a.jsonl.gz: broken gzip"),
    "a hostile name": ({"[red]\x1b[31m.txt": b""}, "cannot be the name of a domain"),
}  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [("diff", "runs", ""), ("report", ""), ("verify", ""), ("evaluate", ""), ("inspect", "")],
)
def test_an_empty_path_is_not_the_working_directory(call: Call, words: tuple[str, ...]) -> None:
    result = call(*words)
    assert (result.code, result.out) == (2, "")
    assert "is empty; name a folder, or . for the working directory\n" in result.err


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
def test_a_runs_dir_that_cannot_be_written_is_one_line(
    call: Call, small: list[str], runs: str, command: list[str]
) -> None:
    Path("file").write_text("")
    result = call(*command, *small, "--runs-dir", runs)
    assert (result.code, result.out) == (2, "")
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    [error] = errors
    assert re.match(rf"error: {runs}.*: cannot be written \(.+\); name another directory", error)
    assert Path("file").read_text() == ""


def test_a_preset_that_shadows_a_shipped_one_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text("")
    for command in (["train"], ["sweep", "seed=0,1"], ["data", "show"]):
        result = call(*command, "--config-dir", tmp_path / "mine")
        assert result.err == (
            f"error: --config-dir {tmp_path / 'mine'}: model/tiny.yaml would shadow the shipped "
            "preset; rename it\n"
        )
        assert result.code == 2


def test_a_bug_is_one_line_that_says_how_to_get_a_traceback(
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
def test_the_exit_code_is_that_of_the_error(
    call: Call, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def broken(*_: Any) -> None:
        error = MoebenchError("no")
        error.exit_code = code
        raise error

    monkeypatch.setattr("moebench.config.compose.Composer.__init__", broken)
    assert call("train") == (code, "", "error: no\n")
