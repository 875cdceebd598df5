"""Router replay: the selections of a recorded run forced on another, step by step."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.balance import Steering
from moebench.config.compose import Composer
from moebench.config.cost import disk_bytes
from moebench.config.identity import arm_hash, label, run_name
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key
from moebench.data.batches import validation
from moebench.data.corpus import Corpus, prepare
from moebench.data.maps import check_map
from moebench.errors import ConfigError, MoebenchError, RecordError
from moebench.evaluate import Settings, open_checkpoint, run_tasks
from moebench.experiment import run_experiment, run_stack
from moebench.inspect import inspect_text
from moebench.inspect.exchange import exchange
from moebench.model.router import Gating, Router
from moebench.records import Record
from moebench.selections import read_entry
from moebench.train.build import make_state
from moebench.train.gradients import accumulate_gradients
from moebench.train.loop import TrainingRun
from tests.results import measured, results, stopped

CPU = torch.device("cpu")
COMPOSER = Composer()
RECORDED = "run.record_selections=true"
Made = tuple[ExperimentConfig, Corpus]


def made(folder: Path, *words: str) -> Made:
    """The config and data of some overrides, of which later ones win."""
    defaults = [
        *("model=smoke", "model.num_layers=2", "global_bsz=8", "seq_len=16", "train.steps=5"),
        *("data=folder", f"data.path={folder}", "data.valid_sequences=2", "optim.lr=0.01"),
        *("run.device=cpu", "run.threads=1", "run.log_every=1", "train.eval_every=2"),
        "run.checkpoint_every=2",
    ]
    typed = dict(word.split("=", 1) for word in (*defaults, *words))
    config = COMPOSER.compose([f"{key}={value}" for key, value in typed.items()])
    return config, prepare(config.data)


def replay(record: Record, *words: str) -> tuple[str, ...]:
    return ("router=replay", f"router.replay={record.path}", *words)


@pytest.fixture(scope="module")
def room(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with recorded selections, of scope=micro and two seeds."""
    folder = tmp_path_factory.mktemp("recorded")
    for seed in (0, 1):
        run_experiment(*made(text_folder, "scope=micro", f"seed={seed}", RECORDED), folder)
    return folder


@pytest.fixture(scope="module")
def source(room: Path) -> Record:
    [path] = room.glob("micro-s0-*")
    return Record(path)


def entry(record: Record, part: str, number: int) -> np.ndarray:
    return np.load(record.path / "selections" / f"{part}.npy")[number]


def test_a_record_has_what_the_routers_selected(text_folder: Path, source: Record) -> None:
    """Of a run of the same loop, step by step; a byte a slot, and an evaluation's counts."""
    config, corpus = made(text_folder, "scope=micro")
    state = make_state(config, corpus.vocab_size, CPU)
    run = TrainingRun(config, corpus, state, CPU)
    for number in range(5):
        step = run.next_step()
        outcome = accumulate_gradients(state.model, run.objective, step, state.balance)
        wanted = outcome.routing.expert_index.numpy()
        assert (entry(source, "train", number) == wanted).all()
        run.finish(step, outcome)
    sizes = {path.name: path.stat().st_size for path in (source.path / "selections").iterdir()}
    assert sizes["train.npy"] == 128 + 5 * 2 * 8 * 16 * 2  # steps layers sequences tokens slots
    recorded, _ = made(text_folder, "scope=micro", RECORDED)
    more = disk_bytes(recorded, corpus.vocab_size) - disk_bytes(config, corpus.vocab_size)
    assert more == sizes["train.npy"] - 128
    valid = np.load(source.path / "selections" / "valid.npy")
    assert valid.shape == (4, 2, 6, 16, 2)  # after steps 0, 2, 4 and 5
    for number, at in enumerate((0, 2, 4, 5)):
        counts = source.routing(at)["counts"].sum(1)
        for layer in range(2):
            found = np.bincount(valid[number, layer].ravel(), minlength=8)
            assert (found == counts[layer]).all()
    assert sizes["tune.npy"] == 128 + 2 * 6 * 16 * 2
    assert "selections/train.npy" in source.summary()["files"]


def test_a_run_that_replays_itself_is_itself_to_the_bit(
    text_folder: Path, tmp_path: Path, source: Record
) -> None:
    config, corpus = made(text_folder, *replay(source, "scope=micro", RECORDED))
    again = run_experiment(config, corpus, tmp_path)
    for found, wanted in zip(measured(again), measured(source), strict=True):
        # forces are measured after the update, where the source would select anew
        assert {key: found[key] for key in wanted if not key.startswith("forces/")} == {
            key: wanted[key] for key in wanted if not key.startswith("forces/")
        }
        assert {*found} - {*wanted} <= {"own/nats"}
        if "own/nats" in found:  # its router selects the same
            own, valid = (float.fromhex(found[key]) for key in ("own/nats", "valid/nats"))
            assert own == pytest.approx(valid, rel=1e-6)
    for part in ("train", "valid", "tune"):
        path = f"selections/{part}.npy"
        assert (again.path / path).read_bytes() == (source.path / path).read_bytes()


def test_another_arm_takes_the_experts_and_weighs_them_itself(
    text_folder: Path, tmp_path: Path, source: Record
) -> None:
    words = replay(source, "scope=none", "model.d_model=48", "router.gate=sigmoid")
    config, corpus = made(text_folder, *words, RECORDED)
    record = run_experiment(config, corpus, tmp_path)
    for part, entries in (("train", 5), ("valid", 4), ("tune", 1)):
        for number in range(entries):
            assert (entry(record, part, number) == entry(source, part, number)).all()
    for at in (0, 2, 4, 5):
        assert (record.routing(at)["counts"] == source.routing(at)["counts"]).all()
    for found, wanted in zip(record.rows(), source.rows(), strict=True):
        assert found.get("load/max_vio_global") == wanted.get("load/max_vio_global")
        assert found.get("train/loss") != wanted.get("train/loss") or found["step"] == 0
    assert record.summary()["own/nats"] != record.summary()["valid/nats"]


@pytest.mark.parametrize("renormalize", [True, False])
def test_the_gradient_of_a_router_is_that_of_its_weights(renormalize: bool) -> None:
    """Against loops: dL/dz_e over the softmax of the forced experts, or of all."""
    draw = torch.Generator().manual_seed(0)
    router = Router(6, 4, 2, Gating(renormalize=renormalize, partial=True))
    torch.nn.init.normal_(router.weight, generator=draw)
    router = router.double()
    x = torch.randn(2, 3, 6, generator=draw, dtype=torch.float64)
    forced = torch.tensor([[[0, 1], [1, -1], [2, 0]], [[0, 2], [-1, 1], [1, 0]]])
    factor = torch.randn(2, 3, 2, generator=draw, dtype=torch.float64)
    chosen = router(x, Steering(forced=forced.int()), training=True)
    (chosen.weights * factor).sum().backward()
    weights = chosen.weights.detach()
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for s in range(2):
        for t in range(3):
            p = (router.weight.detach() @ x[s, t]).softmax(0).tolist()
            experts = forced[s, t].tolist()
            whole = sum(p[e] for e in experts if e >= 0) if renormalize else 1.0
            share = {e: p[e] / whole for e in experts if e >= 0}
            for slot, e in enumerate(experts):
                assert float(weights[s, t, slot]) == pytest.approx(share.get(e, 0))
                for other in range(4) if e >= 0 else ():
                    base = share.get(other, 0) if renormalize else p[other]
                    slope = share[e] * ((other == e) - base)
                    expected[other] += float(factor[s, t, slot]) * slope * x[s, t]
    torch.testing.assert_close(router.weight.grad, expected)
    assert chosen.routing.expert_index[0].tolist() == forced.tolist()
    if renormalize:
        assert (expected[3] == 0).all(), "no token goes to it, and no loss pulls at it"


@pytest.mark.parametrize(
    "words", ["method=expert_choice", "router=relu", "method=quantile_dynamic"]
)
def test_tokens_with_fewer_experts_are_replayed(
    text_folder: Path, tmp_path: Path, words: str
) -> None:
    heldout = "data.heldout=[shapes]"
    config, corpus = made(text_folder, *words.split(), "train.steps=2", heldout, RECORDED)
    source = run_experiment(config, corpus, tmp_path)
    index = entry(source, "train", 1)
    assert (index == 255).any()
    more = ("train.steps=2", "scope=none", heldout, RECORDED)
    again = run_experiment(made(text_folder, *replay(source, *more))[0], corpus, tmp_path)
    assert (entry(again, "train", 1) == index).all()
    for part in ("valid", "heldout"):
        assert (entry(again, part, 1) == entry(source, part, 1)).all()


def test_recording_and_replaying_runs_are_resumed_to_the_bit(
    text_folder: Path, tmp_path: Path, source: Record
) -> None:
    config, corpus = made(text_folder, "scope=micro", RECORDED)
    stopped(config, corpus, tmp_path, step=3)
    [path] = tmp_path.glob("micro-*")
    for part in ("train", "valid"):  # as a crash after the checkpoint leaves them
        with open(path / "selections" / f"{part}.npy", "ab") as file:
            file.write(b"half an entry")
    recorded = run_experiment(config, corpus, tmp_path, resume=True)
    for part in ("train", "valid", "tune"):
        name = f"selections/{part}.npy"
        assert (recorded.path / name).read_bytes() == (source.path / name).read_bytes()
    config, corpus = made(text_folder, *replay(recorded, "scope=none"))
    whole = run_experiment(config, corpus, tmp_path / "whole")
    stopped(config, corpus, tmp_path / "cut", step=3)
    again = run_experiment(config, corpus, tmp_path / "cut", resume=True)
    assert results(again) == results(whole)


def test_a_run_that_was_not_recorded_from_its_start_is_not_recorded_later(
    text_folder: Path, tmp_path: Path
) -> None:
    config, corpus = made(text_folder, "scope=micro")
    stopped(config, corpus, tmp_path, step=3)
    config, _ = made(text_folder, "scope=micro", RECORDED)
    with pytest.raises(MoebenchError, match=r"train.npy is missing .* --force starts afresh"):
        run_experiment(config, corpus, tmp_path, resume=True)


def test_splits_and_stacks_replay_the_same(text_folder: Path, tmp_path: Path, room: Path) -> None:
    """Each seed takes the run of its own, and both are one arm, in one stack."""
    words = ("router=replay", f"router.replay={room}/micro-s*", "scope=none", "optim.lr=0.003")
    pairs = [made(text_folder, *words, f"seed={seed}", RECORDED) for seed in (0, 1)]
    configs, corpora = zip(*pairs, strict=True)
    assert [config.router.replay for config in configs] == sorted(map(str, room.glob("micro-s*")))
    assert stack_key(configs[0]) == stack_key(configs[1])
    assert arm_hash(configs[0], "0") == arm_hash(configs[1], "0")
    assert run_stack(configs, corpora, tmp_path / "stacked") == [None] * 2
    split, _ = made(text_folder, *words, RECORDED, "run.device_bsz=2")
    records = [run_experiment(split, corpora[0], tmp_path / "split")]
    for config, corpus in pairs:
        name = run_name(config, corpus.content_hash)
        records.append(Record(tmp_path / "stacked" / name))
        wanted = entry(Record(Path(config.router.replay or "")), "train", 4)
        assert (entry(records[-1], "train", 4) == wanted).all()
    assert records[0].name == records[1].name
    for found, wanted in zip(records[0].rows(), records[1].rows(), strict=True):
        for key in ("train/loss", "train/grad_norm", "valid/nats", "load/max_vio_batch"):
            if key in wanted:
                assert found[key] == pytest.approx(wanted[key], rel=1e-5)


def test_an_identity_is_of_selections_and_not_of_a_path(
    text_folder: Path, tmp_path: Path, source: Record
) -> None:
    config, corpus = made(text_folder, *replay(source, "scope=none"))
    moved = shutil.copytree(source.path, tmp_path / "moved")
    other, _ = made(text_folder, *replay(Record(moved), "scope=none"))
    assert config.router.replay != other.router.replay
    assert run_name(config, "0") == run_name(other, "0")
    assert run_name(config, "0").startswith("replay-micro-s0-")
    assert label(config) == "replay (micro)"
    once_more, _ = made(text_folder, "scope=global", RECORDED)
    different = run_experiment(once_more, corpus, tmp_path)
    third, _ = made(text_folder, *replay(different, "scope=none"))
    assert run_name(third, "0") != run_name(config, "0")
    assert label(third) == "replay (global)"
    with open(moved / "selections" / "train.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(ConfigError, match=r"selections/train.npy: was changed after the run"):
        check_map(other, corpus)
    shutil.rmtree(moved)
    shutil.copytree(different.path, moved)
    with pytest.raises(ConfigError, match="has other selections now than the config says"):
        check_map(other, corpus)
    with open(moved / "selections" / "train.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x08")
    with pytest.raises(ValueError, match="has experts beyond the 8 of a layer"):
        read_entry(moved, "train", 4, experts=8)


def test_a_finished_replay_needs_its_source_no_more(
    text_folder: Path, tmp_path: Path, source: Record
) -> None:
    copied = Record(Path(shutil.copytree(source.path, tmp_path / "copied")))
    config, corpus = made(text_folder, *replay(copied, "scope=none"))
    record = run_experiment(config, corpus, tmp_path)
    shutil.rmtree(copied.path)
    routed = inspect_text(record.path, "0123")
    assert len(routed.experts) == 2
    assert "its own router selects the experts" in routed.note
    checkpoint = open_checkpoint(record)
    found = run_tasks(checkpoint, ["cloze"], Settings(questions=2), lambda _, x, __: x)
    assert found["cloze"]["all"]["n"] == 6
    assert found["cloze"]["note"] == routed.note
    with pytest.raises(ConfigError, match=r"copied: .*name another run"):
        check_map(config, corpus)


REFUSED: dict[str, str] = {
    "seed=1": "seed=1: router.replay=.* has selections for seed=0; use that, or replay another run",
    "train.steps=6": "train.steps=6: .* for train.steps=5",
    "model.num_experts=16": "model.num_experts=16: .* for model.num_experts=8",
    "model.top_k=1": "model.top_k=1: .* for model.top_k=2",
    "seq_len=32": "seq_len=32: .* for seq_len=16",
    "micro_bsz=2": "micro_bsz=2: .* for micro_bsz=4",
    "data.domain_token=true": "data.domain_token=true: .* for data.domain_token=false",
    "data.weights={digits:2}": r"data.weights=\{'digits': 2.0\}: .* for data.weights=\{\}",
    "router.replay=nowhere": "router.replay=.*nowhere: is not a run; name a run with recorded",
    "router.replay=null": "router.map=replay: needs router.replay=RUN",
    "router=softmax": "router.map=none|is for router.map=replay; add router=replay",
    "method=bias": "method.name=bias: would select experts, and router.map=replay prescribes",
    "router.hash_layers=3": "router.hash_layers=3: must be at most the 2 layers",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    text_folder: Path, source: Record, words: str
) -> None:
    with pytest.raises(ConfigError, match=REFUSED[words]) as error:
        made(text_folder, *replay(source), words)
    assert len(error.value.lines) == 1


def test_sources_that_cannot_be_replayed_are_refused(
    text_folder: Path, tmp_path: Path, room: Path, source: Record
) -> None:
    config, corpus = made(text_folder, "scope=global")
    record = run_experiment(config, corpus, tmp_path)
    with pytest.raises(ConfigError, match="its selections were not recorded; train it again"):
        made(text_folder, *replay(record))
    (record.path / "summary.json").unlink()
    with pytest.raises(ConfigError, match="is not finished; finish it with moebench train"):
        made(text_folder, *replay(record))
    with pytest.raises(ConfigError, match=r"micro-s\*: names no runs of seed=7 with sel"):
        made(text_folder, "router=replay", f"router.replay={room}/micro-s*", "seed=7")
    for name in ("a", "b"):
        shutil.copytree(source.path, tmp_path / "two" / f"micro-{name}")
    pattern = ("router=replay", f"router.replay={tmp_path}/two/micro-*")
    with pytest.raises(ConfigError, match="names 2 runs of seed=0 with selections that fit"):
        made(text_folder, *pattern)
    shutil.rmtree(tmp_path / "two" / "micro-b" / "selections")
    assert str(made(text_folder, *pattern)[0].router.replay).endswith("micro-a")
    broken = shutil.copytree(source.path, tmp_path / "broken")
    (broken / "summary.json").write_text('{"files": [1]}')
    with pytest.raises(ConfigError, match="its record cannot be read"):
        made(text_folder, *replay(Record(broken)))
    (broken / "config.yaml").write_text("data: 5\n")
    with pytest.raises(ConfigError, match=r"its config\.yaml cannot be read"):
        made(text_folder, *replay(Record(broken)))
    other, _ = made(text_folder, *replay(source, "data.domains=[digits,letters]"))
    with pytest.raises(ConfigError, match="has selections for other text"):
        check_map(other, prepare(other.data))


def test_a_checkpoint_reads_text_with_the_experts_of_another_run(
    text_folder: Path, tmp_path: Path, source: Record
) -> None:
    """Of the whole validation text if they were recorded, or of the probe; against a loop."""
    config, corpus = made(text_folder, "scope=global", "optim.lr=0.003")
    run = run_experiment(config, corpus, tmp_path)
    checkpoint = open_checkpoint(run)
    batch = validation(corpus, "test", sequences=2, seq_len=16)
    for other, text in ((source, "valid"), (run, "probe")):
        found = exchange(run.path, other.path)
        assert (found.text, found.sequences, found.step) == (text, 6, 5)
        index = entry(other, "valid", 3) if text == "valid" else run.routing(5)["probe_index"]
        nats: dict[bool, list[float]] = {False: [], True: []}
        for number, tokens in enumerate(torch.from_numpy(batch.tokens)):
            forced = torch.from_numpy(index[:, number : number + 1].astype(np.int64))
            for forces in (False, True):
                logits, _ = checkpoint(tokens[None, :-1], None, forced if forces else None)
                log_p = logits[0].log_softmax(-1)
                each = [float(log_p[t, tokens[t + 1]]) for t in range(16)]
                nats[forces].append(-sum(each) / 16)
        assert found.own == pytest.approx(np.mean(nats[False]), rel=1e-5)
        assert found.replayed == pytest.approx(np.mean(nats[True]), rel=1e-5)
        apart = np.subtract(nats[True], nats[False])
        assert found.difference == pytest.approx(apart.mean(), abs=1e-5)
        assert found.error == pytest.approx(apart.std(ddof=1) / 6**0.5, abs=1e-5)
    assert found.same == 1
    assert found.difference == pytest.approx(0, abs=1e-6)
    longer, _ = made(text_folder, "scope=global", "seq_len=32", "train.steps=1")
    other = run_experiment(longer, corpus, tmp_path)
    with pytest.raises(ConfigError, match=r"--replay=.*: has seq_len=32, and .* has 16; name a"):
        exchange(run.path, other.path)
    changed = Record(shutil.copytree(run.path, tmp_path / "changed"))
    changed.save_routing(5, {"counts": changed.routing(5)["counts"]})
    with pytest.raises(RecordError, match=r"routing/step-5\.npz: was changed after the run"):
        exchange(run.path, changed.path)
