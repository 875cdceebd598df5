"""Prescribed routers in runs: each map against a literal loop, whatever splits or stacks a step."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moebench.balance import Steering
from moebench.config.compose import Composer
from moebench.config.identity import label, run_name
from moebench.config.schema import ExperimentConfig
from moebench.config.stackable import stack_key
from moebench.data.batches import make_batches, validation
from moebench.data.corpus import Corpus, prepare
from moebench.data.maps import PREFIX, RoutingMap, make_map
from moebench.errors import ConfigError
from moebench.evaluate import Settings, check_domain, open_checkpoint, run_tasks
from moebench.experiment import run_experiment, run_stack
from moebench.inspect import inspect_text
from moebench.records import Record
from moebench.train.build import State, make_model, make_state
from moebench.train.gradients import accumulate_gradients
from moebench.train.loop import TrainingRun
from moebench.train.measure import Text
from moebench.train.prescribed import Place, Prescription
from moebench.train.stack import Stack

CPU = torch.device("cpu")
COMPOSER = Composer()
KINDS = ["hash", "sequence_hash", "domain", "domain_token"]
WORDS = ("model=smoke", "model.num_experts=12", "model.num_layers=2", "global_bsz=8", "seq_len=32")


def made(folder: Path, *words: str) -> tuple[ExperimentConfig, Corpus]:
    defaults = [
        *(*WORDS, "data=folder", f"data.path={folder}", "data.valid_sequences=4"),
        *("run.device=cpu", "run.threads=1", "train.eval_every=0", "train.steps=2"),
    ]
    typed = dict(word.split("=", 1) for word in (*defaults, *words))
    config = COMPOSER.compose([f"{key}={value}" for key, value in typed.items()])
    return config, prepare(config.data)


def state_of(config: ExperimentConfig, corpus: Corpus) -> State:
    return make_state(config, corpus.vocab_size, CPU, len(corpus.domains))


def shifted(z: int, by: int) -> int:
    return (z % 2**64) >> by


def mixed(z: int) -> int:
    """Splitmix64, in whole numbers of any size."""
    z = ((z ^ shifted(z, 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ shifted(z, 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ shifted(z, 31)


GOLDEN = 0x9E3779B97F4A7C15


def literal(found: RoutingMap, tokens: list[int], domain: int) -> list[list[list[int]]]:
    """[layers][tokens][top_k] the experts of a sequence."""
    layers = []
    for number, table in enumerate(found.table.tolist()):
        state, experts = 0, []
        for place, token in enumerate(tokens):
            if place < PREFIX:
                state = mixed((state + (token + 1) * GOLDEN) % 2**64)
            if found.kind in ("hash", "domain_token"):
                row = token * found.turns + place % found.turns
            else:
                hashed = mixed((state + (number + 1) * GOLDEN) % 2**64)
                row = hashed % 2**31 % (len(table) // found.domains)
            if found.kind in ("domain", "domain_token"):
                row += domain * (len(table) // found.domains)
            experts.append(table[row])
        layers.append(experts)
    return layers


def prescribed(config: ExperimentConfig, corpus: Corpus) -> Prescription:
    return Prescription.on(make_map(config, corpus), CPU) or pytest.fail("a map")


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_take_the_experts_of_the_loop(text_folder: Path, kind: str) -> None:
    config, corpus = made(text_folder, f"router={kind}", "data.domain_token=true")
    run = TrainingRun(config, corpus, state_of(config, corpus), CPU)
    found = prescribed(config, corpus)
    step = run.next_step()
    outcome = accumulate_gradients(run.state.model, run.objective, step)
    batch = make_batches(corpus, config).batch(1)
    for number, (text, domain) in enumerate(zip(*(each.tolist() for each in batch), strict=True)):
        expected = literal(found.map, [256 + domain, *text[:-1]], domain)
        assert outcome.routing.expert_index[:, number].tolist() == expected
    batch = validation(corpus, "test", sequences=4, seq_len=32)
    held = Text.of(batch, config, corpus, CPU, found, Place("valid", 0))
    _, routing = run.state.model(held.tokens[:, :-1], Steering(forced=held.forced))
    for number, (text, domain) in enumerate(zip(*(each.tolist() for each in batch), strict=True)):
        expected = literal(found.map, [256 + domain, *text[:-1]], domain)
        assert routing.expert_index[:, number].tolist() == expected
    event = run.begin()
    assert event.routing is not None
    assert (event.routing["counts"].sum((1, 2)) == 12 * 33 * 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_experts_tell_nothing_of_later_tokens(text_folder: Path, kind: str) -> None:
    config, corpus = made(text_folder, f"router={kind}")
    prescription, domain = prescribed(config, corpus), torch.zeros(1, dtype=torch.int64)
    tokens = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))
    whole = prescription(tokens, domain)
    for place in (0, 5, 15, 16, 30):
        other = tokens.clone()
        other[:, place + 1 :] = torch.randint(256, (1, 39 - place))
        assert (prescription(other, domain)[:, :, : place + 1] == whole[:, :, : place + 1]).all()


def test_the_gate_weighs_prescribed_experts_and_learns(text_folder: Path) -> None:
    config, corpus = made(text_folder, "router=hash", "scope=none")
    run = TrainingRun(config, corpus, state_of(config, corpus), CPU)
    step = run.next_step()
    outcome = accumulate_gradients(run.state.model, run.objective, step)
    block = run.state.model.blocks[0]
    x = torch.randn(2, 32, config.model.d_model)
    assert step.forced is not None
    chosen = block.router(x, Steering(forced=step.forced[0, :2]))  # pyright: ignore
    probs = (x @ block.router.weight.T).softmax(-1)  # pyright: ignore
    for s in range(2):
        for t in range(32):
            own = [probs[s, t, expert].item() for expert in step.forced[0, s, t].tolist()]
            expected = [each / sum(own) for each in own]
            assert chosen.weights[s, t].tolist() == pytest.approx(expected, rel=1e-4)
    assert outcome.balance == []
    assert all(weight.grad.abs().sum() > 0 for weight in run.state.model.router_weights)  # pyright: ignore


def test_only_the_first_layers_are_prescribed(text_folder: Path) -> None:
    words = ("model.num_layers=3", "model.dense_layers=1", "router=hash")
    config, corpus = made(text_folder, *words, "router.hash_layers=1")
    run = TrainingRun(config, corpus, state_of(config, corpus), CPU)
    step = run.next_step()
    index = accumulate_gradients(run.state.model, run.objective, step).routing.expert_index
    assert step.forced is not None
    assert step.forced.shape == (1, 8, 32, 2)
    assert (index[0] == step.forced[0]).all()
    scores = index[1]
    assert len(scores.unique()) > 2
    whole = replace(config, router=replace(config.router, hash_layers=2))
    unset = replace(config, router=replace(config.router, hash_layers=None))
    assert run_name(whole, "0") == run_name(unset, "0") != run_name(config, "0")
    assert label(config) == "global hash hash_layers=1 dense_layers=1"
    assert label(replace(unset, scope="none")) == "hash dense_layers=1"


@pytest.mark.parametrize("kind", KINDS)
def test_splits_and_stacks_change_rounding_alone(text_folder: Path, kind: str) -> None:
    words = (f"router={kind}", "data.domain_token=true", "train.precision=fp64", "scope=micro")
    config, corpus = made(text_folder, *words)
    other, _ = made(text_folder, *words[1:], "router=sequence_hash", "seed=1")
    assert stack_key(config) == stack_key(other)

    def gradients(config: ExperimentConfig, device_bsz: int) -> dict[str, Tensor]:
        run = TrainingRun(config, corpus, state_of(config, corpus), CPU)
        run.device_bsz = device_bsz
        accumulate_gradients(run.state.model, run.objective, run.next_step())
        return {name: p.grad for name, p in run.state.model.named_parameters()}  # pyright: ignore

    alone, split = gradients(config, 8), gradients(config, 2)
    runs = [TrainingRun(each, corpus, state_of(each, corpus), CPU) for each in (config, other)]
    stack = Stack([run.state.model for run in runs])
    stack.gradients([(run, run.next_step(), None) for run in runs])  # pyright: ignore
    for name, gradient in alone.items():
        stacked = runs[0].state.model.get_parameter(name).grad
        torch.testing.assert_close(split[name], gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(stacked, gradient, rtol=1e-9, atol=1e-12)


def test_a_stack_of_maps_trains_and_records_them(text_folder: Path, tmp_path: Path) -> None:
    words = ("data.domain_token=true", "scope=none")
    pairs = [made(text_folder, f"router={kind}", *words) for kind in KINDS]
    errors = run_stack([config for config, _ in pairs], [corpus for _, corpus in pairs], tmp_path)
    assert errors == [None] * 4
    for config, corpus in pairs:
        record = Record(tmp_path / run_name(config, corpus.content_hash))
        found = make_map(config, corpus)
        assert found is not None
        assert record.manifest()["map"] == found.hash
        assert record.map() == found.to_bytes()
        assert record.damage() == []


def test_a_resumed_run_and_its_tasks_keep_the_map(text_folder: Path, tmp_path: Path) -> None:
    config, corpus = made(text_folder, "router=hash", "scope=none", "train.steps=3")
    whole = run_experiment(config, corpus, tmp_path / "whole")

    def stop(event: object) -> None:
        if getattr(event, "step", 0) == 2:
            raise KeyboardInterrupt

    saving = replace(config, run=replace(config.run, checkpoint_every=1))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(saving, corpus, tmp_path / "cut", on_event=stop)
    resumed = run_experiment(saving, corpus, tmp_path / "cut", resume=True)
    assert resumed.summary()["valid/nats"] == whole.summary()["valid/nats"]
    routed = inspect_text(whole.path, "0123 4567")
    assert len(routed.experts) == 2
    found = prescribed(config, corpus)
    assert routed.experts == literal(found.map, list(b"0123 4567"), 0)


@pytest.mark.parametrize("words", ["router=domain", "data.domain_token=true router=hash"])
def test_a_text_without_a_domain_needs_one_where_the_run_reads_it(
    text_folder: Path, tmp_path: Path, words: str
) -> None:
    config, corpus = made(text_folder, *words.split(), "train.steps=1")
    record = run_experiment(config, corpus, tmp_path)
    needed = "reads the domain .* name one of digits, letters, shapes by --domain"
    with pytest.raises(ConfigError, match=needed):
        inspect_text(record.path, "0123")
    with pytest.raises(ConfigError, match=r"--domain=letter: .* did you mean letters"):
        inspect_text(record.path, "0123", domain="letter")
    found, named = prescribed(config, corpus), config.data.domain_token
    for number, domain in enumerate(corpus.domains):
        routed = inspect_text(record.path, "0123", domain=domain)
        text = [*[256 + number] * named, *b"0123"]
        expected = literal(found.map, text, number)
        assert routed.experts == [layer[int(named) :] for layer in expected]
    checkpoint = open_checkpoint(record)
    pair = {"sentence_good": "01", "sentence_bad": "10", "UID": "a", "linguistics_term": "b"}
    (tmp_path / "a.jsonl").write_text(json.dumps(pair))
    settings = Settings(tmp_path, questions=2)
    with pytest.raises(ConfigError, match=needed):
        check_domain(checkpoint, ["blimp"], settings)
    with pytest.raises(ConfigError, match="--domain=digits: is for blimp"):
        check_domain(checkpoint, ["cloze"], replace(settings, domain="digits"))
    settings = replace(settings, domain="digits")
    results = run_tasks(checkpoint, ["cloze", "blimp"], settings, lambda _, x, __: x)
    assert results["cloze"]["all"]["n"] == 6
    assert results["blimp"]["all"]["n"] == 1
    assert results["blimp"]["of_domain"] == "digits"


def test_a_domain_token_changes_neither_targets_nor_shared_weights(
    text_folder: Path, tmp_path: Path
) -> None:
    words = ("scope=none", "model.moe=false")
    (plain, corpus), (named, _) = (
        made(text_folder, *words),
        made(text_folder, *words, "data.domain_token=true"),
    )
    models = [make_model(each, 256, 3) for each in (plain, named)]
    for name, weight in models[0].named_parameters():
        assert torch.equal(weight, models[1].get_parameter(name))
    more = {name for name, _ in models[1].named_parameters()}
    assert more - {name for name, _ in models[0].named_parameters()} == {"domains"}
    assert models[1].get_parameter("domains").shape == (3, plain.model.d_model)
    runs = [TrainingRun(each, corpus, state_of(each, corpus), CPU) for each in (plain, named)]
    steps = [run.next_step() for run in runs]
    assert steps[0].targets == steps[1].targets == 8 * 32
    assert steps[1].total == 8 * 33
    assert torch.equal(steps[0].tokens, steps[1].tokens[:, 1:])
    assert steps[1].domain is not None
    assert (steps[1].tokens[:, 0] == 256 + steps[1].domain).all()
    outcome = accumulate_gradients(runs[1].state.model, runs[1].objective, steps[1])
    logits = runs[1].state.model(steps[1].tokens[:, :-1])[0].detach()
    nats = [
        -float(logits[s, t].log_softmax(-1)[steps[1].tokens[s, t + 1]])
        for s in range(8)
        for t in range(1, 33)  # from the first token of text on
    ]
    assert outcome.cross_entropy.item() == pytest.approx(np.mean(nats), rel=1e-5)
    records = [run_experiment(each, corpus, tmp_path) for each in (plain, named)]
    first, second = (record.manifest()["first_sequences"] for record in records)
    assert first == second
    assert records[1].summary()["tokens"] == records[0].summary()["tokens"] == 2 * 8 * 32


def test_a_balance_loss_counts_every_routed_token(text_folder: Path) -> None:
    """It is 1 where the router is uniform, with a domain's token as without."""
    config, corpus = made(text_folder, "data.domain_token=true", "loss.balance=1")
    run = TrainingRun(config, corpus, state_of(config, corpus), CPU)
    with torch.no_grad():
        for weight in run.state.model.router_weights:
            weight.zero_()
    outcome = accumulate_gradients(run.state.model, run.objective, run.next_step())
    assert outcome.balance[0][1].item() == pytest.approx(1, rel=1e-5)
