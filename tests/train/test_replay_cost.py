"""Replay cost, against a literal loop and for routers whose knowledge of the domain is known."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moebench.balance import Steering
from moebench.config.compose import Composer
from moebench.data.corpus import prepare
from moebench.experiment import run_experiment
from moebench.train.replay_cost import donors, replay_cost

DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(0, 6, (9, 8))
TOKENS[0, 0] = 99  # occurs once
TOKENS[0:3, 1] = 77  # occurs in one domain alone
DOMAIN = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])


def test_donors_hold_the_same_token_elsewhere() -> None:
    other, own = donors(TOKENS, DOMAIN)
    flat = TOKENS.ravel()
    for s, t in np.ndindex(TOKENS.shape):
        places = [p for p in range(72) if flat[p] == TOKENS[s, t]]
        elsewhere = [p for p in places if DOMAIN[p // 8] != DOMAIN[s]]
        beside = [p for p in places if DOMAIN[p // 8] == DOMAIN[s] and p // 8 != s]
        if elsewhere and beside:
            assert other[s, t] in elsewhere
            assert own[s, t] in beside
        else:
            assert other[s, t] == own[s, t] == s * 8 + t


def test_donors_are_drawn_evenly() -> None:
    """4,000 tokens of one kind: each of 8 sequences gives equally many in another domain."""
    tokens, domain = np.zeros((8, 500), np.int64), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    other, own = donors(tokens, domain)
    for found, size in ((other, 4), (own, 3)):
        times = Counter((found // 500).ravel().tolist())
        assert sorted(times) == list(range(8))
        assert max(times.values()) - min(times.values()) < 130, size
    assert (donors(tokens, domain)[0] == other).all()


def test_the_cost_is_that_of_the_loop() -> None:
    index = torch.from_numpy(DRAW.integers(0, 5, (2, 9, 8, 2)))
    given: list[Tensor] = []

    def forward(forced: Tensor) -> Tensor:
        given.append(forced)
        return forced.double().sum((0, 3)) ** 2

    found = replay_cost(index, torch.from_numpy(TOKENS), torch.from_numpy(DOMAIN), forward)
    by_domain: dict[int, list[float]] = {}
    for s, t in np.ndindex(TOKENS.shape):
        nats = []
        for number, place in enumerate(donors(TOKENS, DOMAIN)):
            donor = index[:, place[s, t] // 8, place[s, t] % 8]
            assert (given[number][:, s, t] == donor).all()
            nats.append(float(donor.sum()) ** 2)
        by_domain.setdefault(int(DOMAIN[s]), []).append(nats[0] - nats[1])
    assert found == pytest.approx(np.mean([np.mean(each) for each in by_domain.values()]))


def test_it_says_nothing_without_a_second_domain_or_with_empty_slots() -> None:
    index = torch.zeros(1, 9, 8, 2, dtype=torch.int64)
    tokens, fail = torch.from_numpy(TOKENS), lambda _: pytest.fail("no pass is needed")
    assert replay_cost(index, tokens, torch.zeros(9, dtype=torch.int64), fail) is None
    assert replay_cost(index - 1, tokens, torch.from_numpy(DOMAIN), fail) is None


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("hash", 0, 0), ("domain_token", 0.01, 9), ("random", -0.02, 0.02)]
)
def test_it_is_what_a_router_knows_of_the_domain(
    text_folder: Path, tmp_path: Path, kind: str, low: float, high: float
) -> None:
    """The domains share the blank alone, and after a blank the domain decides what comes."""
    config = Composer().compose(
        [
            *("model=smoke", "model.num_experts=12", "seq_len=32", "global_bsz=8"),
            *("data=folder", f"data.path={text_folder}", "data.valid_sequences=8", "optim.lr=0.01"),
            *("train.steps=30", "train.eval_every=0", "run.device=cpu", "run.threads=1"),
            *("scope=none", f"router={kind}"),
        ]
    )
    summary = run_experiment(config, prepare(config.data), tmp_path).summary()
    assert low <= summary["router/replay_cost"] <= high
    purity = summary["specialization/purity"]
    assert (purity == pytest.approx(1)) == (kind == "domain_token")


def test_the_forward_with_own_experts_is_the_evaluation_itself() -> None:
    from tests.model.test_router import model_of, tokens

    model = model_of("softmax")
    logits, routing = model(tokens())
    forced, again = model(tokens(), Steering(forced=routing.expert_index))
    assert torch.equal(logits, forced)
    assert torch.equal(routing.counts, again.counts)
