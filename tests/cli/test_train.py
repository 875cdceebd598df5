"""`moebench train` and `verify`: a run is trained once, resumed, and started over."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moebench.config import treatment
from moebench.records import Record
from moebench.train import precision_gain
from tests.calls import Call


def test_print_config_is_yaml_or_json(call: Call) -> None:
    text = call("train", "--print-config", "model=smoke").out
    assert text.startswith("scope: global\nbalance_bsz: 128\n")
    Path("config.yaml").write_text(text)
    assert call("train", "--print-config", "--config", "config.yaml").out == text
    shown = json.loads(call("train", "--print-config", "--json", "model=smoke").out)
    assert shown["schema_version"] == 1
    assert shown["config"]["model"]["d_model"] == 32


def test_a_dry_run_prints_the_plan_and_writes_no_run(call: Call, small: list[str]) -> None:
    result = call("train", "--dry-run", *small)
    assert re.fullmatch(r"runs/global-s0-[0-9a-f]{10}: 6 steps of 8 sequences\n", result.out)
    found = json.loads(call("train", "--dry-run", "--json", *small).out)
    assert found["run"] == result.out.split(":")[0]
    assert (found["steps"], found["done"]) == (6, False)
    planned = call("sweep", "--dry-run", *small, "seed=0,1")
    assert "global (baseline)" in planned.out
    table = [line for line in planned.out.splitlines() if line[0] in "┏┃┡│└"]
    assert max(map(len, table)) <= 80
    assert planned.err == ""
    runs = json.loads(call("sweep", "--dry-run", "--json", *small, "seed=0,1").out)["runs"]
    assert [run["state"] for run in runs] == ["waiting", "waiting"]
    assert list(Path().iterdir()) == []


def test_a_run_computes_its_treatment_once(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_gain, "bf16_gain", lambda: 1.0)  # it may make a model
    computed, compute = [], treatment.balance_terms
    monkeypatch.setattr(
        treatment, "balance_terms", lambda config: (computed.append(config), compute(config))[1]
    )
    result = call("train", *small)
    assert result.code == 0, result.err
    assert len(computed) == 1


def test_a_run_is_trained_once_resumed_and_started_over(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_gain, "bf16_gain", lambda: 1.52)
    first = call("train", "--json", *small)
    assert first.code == 0
    made = json.loads(first.out)
    record = Record(Path(made["run"]))
    assert made == {"schema_version": 1, "run": str(record.path), "summary": record.summary()}
    assert "step 6/6" in first.err
    assert "0.1 per router" not in first.err
    faster = r"train\.precision=bf16: about 1\.5 times as fast here"
    where = rf"  cpu, 1 thread \({faster}\); balance loss per router: global: [0-9.e-]+\n"
    assert re.search(where, first.err)

    for option in ([], ["--resume"]):
        again = call("train", "--json", *option, *small)
        assert (again.code, again.out) == (0, first.out)
        assert again.err == f"{record.path}: already done\n"
    dry = call("train", "--dry-run", *small)
    assert dry.out == f"{record.path}: 6 steps of 8 sequences (already done)\n"
    assert call("verify").out == f"{record.path}: complete and unchanged\n"
    assert call("verify", record.path, "--json").out == (
        json.dumps({"schema_version": 1, "damage": {str(record.path): []}}, indent=2) + "\n"
    )

    (record.path / "summary.json").unlink()
    record.set_status("stopped", step=6)
    unfinished = call("train", *small)
    assert (unfinished.code, unfinished.out) == (2, "")
    assert unfinished.err.splitlines()[-1] == (
        f"error: {record.path}: is an unfinished run; --resume continues it, --force starts afresh"
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


def test_a_run_that_stopped_before_its_first_row_can_be_resumed(
    call: Call, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moebench.experiment.session.make_state", interrupted)
        assert call("train", *small).code == 130
    assert len(list(Path("runs").glob("global-*"))) == 1
    assert call("train", *small).code == 2
    assert call("train", "--resume", *small).code == 0


def test_the_error_of_a_failed_run_names_step_and_term(call: Call, small: list[str]) -> None:
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


def test_hostile_content_of_a_summary_is_not_printed(call: Call, small: list[str]) -> None:
    made = json.loads(call("train", "--json", *small).out)
    record = Record(Path(made["run"]))
    record.seal({"valid/nats": "[/red]\x1b", "valid/ppl": [1], "seconds": 1e300})
    result = call("train", *small)
    assert (result.code, result.out) == (2, "")
    assert "summary.json: valid/nats is not a finite number" in result.err
    (record.path / "summary.json").write_text("{")
    broken = call("train", *small)
    assert broken.code == 2
    assert broken.err.splitlines()[-1].endswith(
        "is not a JSON object; the record is damaged; restore it, or remove it and --resume "
        "continues from the last checkpoint"
    )


def test_changed_results_are_not_shown_and_a_lost_summary_is_made_again(
    call: Call, small: list[str]
) -> None:
    record = Record(Path(json.loads(call("train", "--json", *small).out)["run"]))
    made, summary = record.summary(), record.path / "summary.json"
    summary.write_text(summary.read_text().replace('"valid/nats": ', '"valid/nats": 1'))
    for words in (["train"], ["train", "--dry-run"], ["train", "--resume"]):
        forged = call(*words, *small)
        assert (forged.code, forged.out) == (2, "")
        assert forged.err.splitlines()[-1] == (
            f"error: {summary}: was changed after the run; restore it, or remove it and --resume "
            "continues from the last checkpoint"
        )
    summary.unlink()
    assert call("train", "--resume", *small).code == 0
    again = record.summary()
    same = [name for name in made if "/" in name and not name.startswith("speed/")]
    assert [again[name] for name in same] == [made[name] for name in same]
    rewrite(record.path / "manifest.json", arm="none")
    for words in (["train"], ["sweep", "seed=range(0,1)"]):
        changed = call(*words, *small)
        assert changed.code == (2 if words == ["train"] else 3)
        assert "manifest.json: was changed after the run; restore it, or --force" in changed.err
    [status] = json.loads(call("sweep", "--status", "--json").out)["runs"]
    assert (status["state"], "manifest.json: was changed" in status["reason"]) == ("failed", True)
    assert call("train", "--force", *small).code == 0
    assert record.damage() == []


def test_a_runs_dir_can_have_any_name(call: Call, small: list[str]) -> None:
    name = "[/red] é {a} $(x)"
    result = call("train", *small, "--runs-dir", name)
    assert result.code == 0
    assert result.out.startswith(f"{name}/global-s0-")
    assert call("verify", "--runs-dir", name).code == 0


# Identity


def results(record: Record) -> list[dict[str, Any]]:
    """The rows of a run without times and memory, which differ between equal runs."""
    about = ("time", "speed/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(about)} for row in record.rows()]


def test_a_records_config_run_elsewhere_gives_the_same_bits(call: Call, small: list[str]) -> None:
    made = json.loads(call("train", "--json", *small, "scope=shuffled", "seed=3").out)
    record = Record(Path(made["run"]))
    words = ["--config", record.path / "config.yaml", "--runs-dir", "elsewhere"]
    again = json.loads(call("train", "--json", *words).out)
    assert again["run"] == f"elsewhere/{record.name}"
    assert len(results(record)) > 1
    assert results(Record(Path(again["run"]))) == results(record)
    tensors = list(record.path.glob("checkpoints/step-6/*.safetensors"))
    assert tensors
    for path in tensors:
        assert Path("elsewhere", path.relative_to("runs")).read_bytes() == path.read_bytes()
    other = json.loads(call("train", "--json", *words, "seed=4").out)
    assert other["run"] != again["run"], "what is typed wins over the file"


def test_equal_treatments_share_one_run_across_studies(call: Call, small: list[str]) -> None:
    made = json.loads(call("train", "--json", *small, "scope=micro").out)
    again = call("train", "--json", *small, "scope=global", "balance_bsz=4", "run.log_every=1")
    assert json.loads(again.out) == made
    assert again.err == f"{made['run']}: already done\n"
    for arms in ("scope=micro,global", "scope=none,micro"):
        planned = json.loads(call("sweep", "--dry-run", "--json", *small, arms).out)["runs"]
        assert [run["state"] for run in planned if run["arm"] == "micro"] == ["done"]
        assert [run["state"] for run in planned if run["arm"] != "micro"] == ["waiting"]


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_version_of_an_older_run_is_named(call: Call, small: list[str]) -> None:
    record = Record(Path(json.loads(call("train", "--json", *small).out)["run"]))
    manifest = record.path / "manifest.json"
    rewrite(manifest, moebench="0.0.9", torch="2.0.0")
    record.seal(record.summary())
    done = call("train", *small)
    assert (done.code, done.err) == (
        *(0, f"{record.path}: already done, by moebench 0.0.9 and torch 2.0.0\n"),
    )
    (record.path / "summary.json").unlink()
    unfinished = call("train", *small)
    assert (unfinished.code, unfinished.out) == (2, "")
    assert unfinished.err.splitlines()[-1] == (
        f"error: {record.path}: is an unfinished run of moebench 0.0.9 and torch 2.0.0; --resume "
        "continues it, --force starts afresh"
    )
    rewrite(manifest, schema_version=2)
    for words in ([], ["--resume"]):
        foreign = call("train", *small, *words)
        assert (foreign.code, foreign.out) == (2, "")
        assert foreign.err.splitlines()[-1] == (
            f"error: {record.path}: is a record of version 2, this moebench reads version 1; "
            "use the moebench that made it"
        )
    assert call("train", *small, "--force").code == 0
    assert record.manifest()["moebench"] != "0.0.9"


def test_a_run_that_does_not_exist_cannot_be_resumed(call: Call, small: list[str]) -> None:
    result = call("train", "--resume", *small)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(
        r"error: runs/global-s0-\w+: there is no such run to resume; start it without "
        r"--resume",
        result.err.splitlines()[-1],
    )
    assert list(Path().iterdir()) == []
    Record(Path("runs/micro-s0-1")).begin("seed: 0\n", {})
    result = call("train", "--resume", *small)
    assert "to resume; unfinished runs are micro-s0-1; start it without --resume\n" in result.err


@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["sweep", "seed=0,1"]])
def test_too_many_epochs_are_refused_before_training(
    call: Call, small: list[str], command: list[str]
) -> None:
    small.remove("train.steps=6")
    result = call(*command, *small, "train.steps=100000")
    assert (result.code, result.out) == (2, "")
    [line] = [line for line in result.err.splitlines() if not line.startswith("data ")]
    assert line.startswith("error: data.max_epochs=4: train.steps=100000 ")
    assert list(Path().iterdir()) == []
