"""A short run learns real text."""

from pathlib import Path

import numpy as np

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.batches import validation
from moebench.data.corpus import Corpus, prepare
from moebench.experiment import run_experiment


def unigram_nats(corpus: Corpus, config: ExperimentConfig) -> float:
    """Mean over domains of the cross-entropy of each domain's own byte frequencies."""
    batch = validation(
        corpus, "test", sequences=config.data.valid_sequences, seq_len=config.seq_len
    )
    found = []
    for number, domain in enumerate(corpus.domains):
        counts = np.bincount(corpus.train(domain), minlength=256) + 1
        targets = batch.tokens[batch.domain == number, 1:]
        found.append(-np.log(counts / counts.sum())[targets].mean())
    return float(np.mean(found))


def test_a_model_learns_installed_text_far_below_its_unigram_entropy(tmp_path: Path) -> None:
    small = "model=smoke", "seq_len=64", "data.valid_sequences=200", "optim.lr=1e-2"
    few = "data.domains=[english,python]"  # to prepare all five takes longer than the run
    config = Composer().compose(
        [*small, few, "train.steps=100", "global_bsz=16", "run.threads=1", "run.device=cpu"]
    )
    corpus = prepare(config.data)
    summary = run_experiment(config, corpus, tmp_path).summary()
    assert summary["valid/nats"] < 0.85 * unigram_nats(corpus, config)
