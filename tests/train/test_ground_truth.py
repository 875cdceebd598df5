"""No loss falls below the entropy of the source, and training comes near it."""

from moebench.model import transformer
from tests.train.ground_truth import gaps

SMALL = ("model=smoke", "global_bsz=16", "seq_len=64", "data.num_domains=2", "optim.lr=0.01")
SMALL += ("data.valid_sequences=60",)


def test_the_loss_comes_near_the_source_and_never_below_it():
    found = dict(gaps(*SMALL, "train.steps=150", every=75))
    assert min(each.sigmas for each in found.values()) > -3
    first, last = (found[step].model - found[step].source for step in (0, 150))
    assert last < 0.05 * first


def test_a_model_that_sees_its_targets_falls_below_it(monkeypatch):
    def leaking(qkv, *_):
        return qkv[:, :, 2].roll(-1, 1)  # each token sees the value of the next one

    monkeypatch.setattr(transformer, "cpu_attention", leaking)
    found = dict(gaps(*SMALL, "train.steps=100", every=100))
    assert found[100].sigmas < -3
