"""A model's loss on text of known likelihood, compared with the likelihood itself.

No model does better than the source of a text that it has not seen: on the same tokens, its loss is
at least the source's negative log-likelihood, up to sampling noise. A lower loss means a leak, such
as a target among the inputs. `python -m tests.train.ground_truth` prints the gap during training.
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.batches import validation
from moebench.data.corpus import Corpus, prepare
from moebench.data.sources import open_source
from moebench.data.sources.synthetic import Synthetic
from moebench.data.tokenizer import END
from moebench.model.transformer import MoETransformer
from moebench.train.build import make_state
from moebench.train.loop import train

HALF = "test"


class Gap(NamedTuple):
    """Nats per token of the model and of the source, over the same tokens.

    Attributes:
        model: mean nats per token of the model.
        source: the same of the source.
        error: standard error of the mean difference, over sequences.
    """

    model: float
    source: float
    error: float

    @property
    def sigmas(self) -> float:
        """The number of standard errors by which the model is above the source."""
        return (self.model - self.source) / self.error


def source_nats(source: Synthetic, corpus: Corpus, domain: str) -> np.ndarray:
    """The source's nats of each token [tokens] in a half of the validation text."""
    tokens = corpus.valid(domain, HALF)
    texts = tokens.tobytes().split(bytes([END]))[:-1]
    return -np.concatenate([source.log_likelihood(domain, text) for text in texts])


def gap(config: ExperimentConfig, source: Synthetic, corpus: Corpus, model: MoETransformer) -> Gap:
    """The gap on the validation sequences of all domains."""
    sequences, seq_len = config.data.valid_sequences, config.seq_len
    batch = validation(corpus, HALF, sequences=sequences, seq_len=seq_len)
    tokens = torch.from_numpy(batch.tokens)
    with torch.no_grad():
        logits = model(tokens[:, :-1])[0]
    nats = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").double()
    truth = []
    for domain in corpus.domains:
        found = source_nats(source, corpus, domain)
        starts = np.arange(sequences) * len(found) // sequences
        truth += [found[start + 1 : start + seq_len + 1] for start in starts]
    model_means, source_means = nats.mean(1).numpy(), np.stack(truth).mean(1)
    difference = model_means - source_means
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return Gap(model_means.mean(), source_means.mean(), error)


def gaps(*overrides: str, every: int) -> Iterator[tuple[int, Gap]]:
    """Train on synthetic text and yield the gap every so many steps."""
    config = Composer().compose(["data=synthetic", "run.device=cpu", *overrides])
    source, corpus = open_source(config.data), prepare(config.data)
    assert isinstance(source, Synthetic)
    state = make_state(config, corpus.vocab_size, torch.device("cpu"))
    for event in train(config, corpus, state, torch.device("cpu")):
        if event.step % every == 0:
            yield event.step, gap(config, source, corpus, state.model)


if __name__ == "__main__":
    print("step", *Gap._fields, "sigmas")
    for step, each in gaps(*sys.argv[1:], every=50):
        print(step, *(f"{value:.4f}" for value in each), f"{each.sigmas:.1f}", flush=True)
