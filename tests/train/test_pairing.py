"""Arms of one seed share batches and initial weights, whatever the treatment."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from moebench.config.compose import Composer
from moebench.data.batches import Batches
from moebench.data.corpus import prepare
from moebench.experiment import run_experiment
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.build import make_model, make_objective
from moebench.train.feed import Feed
from moebench.train.gradients import accumulate_gradients
from moebench.train.step import Step
from tests.processes import on_ranks
from tests.results import stopped
from tests.train.batches_seen import batches_of_a_run, watched

COMPOSER = Composer()
SIZES = ("model=smoke", "global_bsz=16", "seq_len=32", "data.valid_sequences=4", "run.device=cpu")


def compose(folder: Path, *overrides: str):
    more = ("train.steps=4", "run.threads=1", "data=folder", f"data.path={folder}")
    return COMPOSER.compose([*SIZES, *more, *overrides])


ARMS = [
    *(["scope=none"], ["scope=micro"], ["scope=domain"], ["scope=shuffled", "balance_bsz=8"]),
    *(["loss.balance=1"], ["loss.z=0.1"], ["balance.estimator=ema"], ["balance.window_steps=2"]),
    *(["router=softmax_raw"], ["router.perturb=1e-6"], ["optim.lr=1e-4"]),
    *(["train.eval_every=1"], ["run.log_every=1"], ["run.checkpoint_every=1"]),
    *(["run.device_bsz=4"], ["run.device_bsz=1"], ["data.mask_documents=true"]),
    *(["router=cosine"], ["router=mlp"], ["router=noisy", "router.jitter=0.1"], ["router=relu"]),
    *(["router=capacity"], ["router=growing"], ["method=bias"], ["method=sinkhorn"]),
    *(["method=specialize"], ["model.dense_layers=1"], ["model.moe=false"]),
]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The step and hash of each batch that a run in this process trains on."""
    hashes: list[str] = []
    monkeypatch.setattr(Feed, "__call__", watched(hashes))
    return hashes


class Trained(NamedTuple):
    """The weights before the first step, and the first sequences as the manifest has them."""

    weights: dict[str, torch.Tensor]
    first_sequences: str


def train(folder: Path, runs: Path, *overrides: str) -> Trained:
    config = compose(folder, *overrides)
    record = run_experiment(config, prepare(config.data), runs)
    return Trained(make_model(config, 256).state_dict(), record.manifest()["first_sequences"])


@pytest.fixture(scope="module")
def baseline(text_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of the default arm, and its batches."""
    hashes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "__call__", watched(hashes))
        return train(text_folder, tmp_path_factory.mktemp("baseline")), hashes


@pytest.mark.parametrize("arm", ARMS, ids=" ".join)
def test_no_arm_changes_the_batches_or_the_shared_weights(
    text_folder: Path,
    tmp_path: Path,
    seen: list[str],
    baseline: tuple[Trained, list[str]],
    arm: list[str],
):
    expected, batches = baseline
    trained = train(text_folder, tmp_path, *arm)
    assert seen == batches
    assert len(set(seen)) == 4
    assert trained.first_sequences == expected.first_sequences
    # the vectors of a cosine router are shorter
    differs = "perturb" in arm[0] or arm[0] == "router=cosine"
    for name in trained.weights.keys() & expected.weights.keys():
        if not (differs and name.endswith("router.weight")):
            assert torch.equal(trained.weights[name], expected.weights[name]), name


def test_a_resumed_run_continues_with_the_same_batches(
    text_folder: Path, tmp_path: Path, seen: list[str]
):
    config = compose(text_folder, "run.checkpoint_every=1")
    corpus = prepare(config.data)
    run_experiment(config, corpus, tmp_path / "whole")
    stopped(config, corpus, tmp_path / "cut", step=2)
    run_experiment(config, corpus, tmp_path / "cut", resume=True)
    assert len(seen) == 4 + 2 + 2
    assert seen[:4] == seen[4:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_knows_the_whole_batch(
    text_folder: Path, tmp_path: Path, seen: list[str], ranks: int
):
    config = compose(text_folder)
    run_experiment(config, prepare(config.data), tmp_path / "runs")
    arm = [*SIZES, "train.steps=4", "run.threads=1", "data=folder", f"data.path={text_folder}"]
    for hashes in on_ranks(batches_of_a_run, ranks, *arm, "--runs-dir", str(tmp_path / "ranks")):
        assert hashes == seen


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp64", 1e-10)])
def test_homogeneity_does_not_change_a_global_loss(text_folder: Path, precision: str, bound: float):
    found = []
    for homogeneity in (1.0, 0.5, 0.0):
        overrides = (f"train.precision={precision}", f"data.homogeneity={homogeneity}")
        config = compose(text_folder, "loss.balance=1", *overrides)
        corpus = prepare(config.data)
        model = make_model(config, corpus.vocab_size)
        batches = Batches(
            corpus, seq_len=32, micro_bsz=4, global_bsz=16, seed=0, homogeneity=homogeneity
        )
        tokens, domain = Feed(batches, torch.device("cpu"))(1)
        objective = make_objective(config, corpus.domains)
        outcome = accumulate_gradients(model, objective, Step(tokens, 16, domain=domain))
        gradient = torch.cat(
            [each.grad.flatten() for each in model.parameters() if each.grad is not None]
        )
        found.append((tokens, outcome.cross_entropy, gradient))
    for tokens, loss, gradient in found[1:]:
        assert not torch.equal(tokens, found[0][0])
        assert abs(loss - found[0][1]) < bound
        assert (gradient - found[0][2]).abs().max() < bound


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_resident_tokens_make_the_same_batches(text_folder: Path, tokenizer: str):
    overrides = (f"data.tokenizer={tokenizer}", "data.vocab_size=300")
    corpus = prepare(compose(text_folder, *overrides).data)
    batches = Batches(corpus, seq_len=32, micro_bsz=4, global_bsz=16, seed=1, homogeneity=0.5)
    for step in (1, 9):
        tokens, domain = Feed(batches, torch.device("cpu"), resident=True)(step)
        batch = batches.batch(step)
        assert tokens.dtype == torch.int64
        assert np.array_equal(tokens.numpy(), batch.tokens)
        assert (domain.numpy() == batch.domain).all()


def test_attention_does_not_cross_masked_documents():
    shape: dict[str, Any] = {"d_model": 16, "num_layers": 2, "num_heads": 2, "num_experts": 4}
    models = []
    for end in (None, 31):
        model = MoETransformer(
            vocab_size=32, top_k=2, expert_dim=16, compute=torch.float64, document_end=end, **shape
        )
        initialize(model, 0)
        models.append(model)
    open_one, masked = models
    draw = np.random.default_rng(0)
    tokens = torch.from_numpy(draw.integers(31, size=(3, 12)))
    tokens[:, 5] = 31
    alone = open_one(tokens[:, 6:])[0]
    assert torch.allclose(masked(tokens)[0][:, 6:], alone, atol=1e-12)
    assert not torch.allclose(open_one(tokens)[0][:, 6:], alone, atol=1e-3)
    assert torch.allclose(masked(tokens)[0][:, :6], open_one(tokens[:, :6])[0], atol=1e-12)
