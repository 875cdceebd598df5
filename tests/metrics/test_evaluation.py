"""All that a batch and an evaluation say of routers, against loops over tokens and known cases."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from moebench.balance import Routing, join, observe
from moebench.catalogue import random_values
from moebench.metrics.batch import batch_metrics
from moebench.metrics.evaluation import BINS, PROBE, routing_metrics
from tests.routings import literal_balance_loss, random_routing

MICRO = 2  # sequences in a micro-batch


def sent(index: Tensor, experts: int) -> Routing:
    """The routing that sends tokens to `index` [sequences, tokens, top_k], all others being 0."""
    probs = torch.zeros(*index.shape[:2], experts).scatter(2, index, 1 / index.shape[-1])
    return observe(probs, probs, index)


def told(routing: Routing, domain: Tensor, token: Tensor | None = None) -> dict[str, float]:
    """Both rows of a routing, all domains weighing the same."""
    if token is None:
        token = torch.zeros(routing.expert_index.shape[1:3], dtype=torch.int64)
    mixture = torch.ones(int(domain.max()) + 1, dtype=torch.float64)
    row, _ = routing_metrics(routing, token, domain, mixture)
    return {**numbers(routing), **row}


def numbers(routing: Routing) -> dict[str, float]:
    return {key: value.detach().item() for key, value in batch_metrics(routing, MICRO).items()}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def violation(count: Sequence[float]) -> float:
    return max(count) / mean(count) - 1


def test_a_batch_equals_loops_over_tokens() -> None:
    logits, routing = random_routing(layers=2, sequences=6, tokens=5, experts=6, top_k=2)
    found = numbers(routing)
    wanted: dict[str, list[float]] = {key: [] for key in found if not key.startswith("train/")}
    for layer in range(2):
        micro = [[0] * 6 for _ in range(3)]
        mass = 0.0
        for sequence in range(6):
            for token in range(5):
                probs = logits[layer, sequence, token].softmax(-1).tolist()
                for expert in sorted(range(6), key=lambda e: -probs[e])[:2]:
                    micro[sequence // MICRO][expert] += 1
                    mass += probs[expert] / 30
        whole = [sum(each) for each in zip(*micro, strict=True)]
        share = [each / 60 for each in whole]
        room = math.ceil(1.25 * 20 / 6)
        wanted["load/max_vio_micro"] += [violation(each) for each in micro]
        wanted["load/max_vio_batch"].append(violation(whole))
        wanted["load/cv"].append(math.sqrt(mean([(each / 10 - 1) ** 2 for each in whole])))
        wanted["load/entropy"].append(math.exp(-sum(p * math.log(p) for p in share if p)) / 6)
        wanted["load/dead_experts"].append(whole.count(0) / 6)
        apart = sum(abs(one - other) for one in whole for other in whole)
        wanted["load/gini"].append(apart / (2 * 6 * 60))
        wanted["load/padding"] += [
            sum(max(0, room - c) for c in each) / (6 * room) for each in micro
        ]
        wanted["load/drop_rate"] += [sum(max(0, c - room) for c in each) / 20 for each in micro]
        wanted["router/topk_mass"].append(mass)
    for key, values in wanted.items():
        assert found[key] == pytest.approx(mean(values)), key
    pairs = [[0, 1], [2, 3], [4, 5]]
    for name, groups in (("micro", pairs), ("global", [list(range(6))])):
        value = literal_balance_loss(logits, 2, groups)
        assert found[f"train/balance_loss_{name}"] == pytest.approx(value)
    square = logits.detach().logsumexp(-1).square().mean()
    assert found["train/z_loss"] == pytest.approx(square.item())


def test_an_evaluation_equals_loops_over_tokens() -> None:
    domain = torch.tensor([0, 0, 1, 1, 1, 2])
    _, routing = random_routing(layers=2, sequences=6, tokens=5, experts=6, top_k=2)
    token = torch.randint(0, 3, (6, 5), generator=torch.Generator().manual_seed(0))
    mixture = torch.tensor([0.5, 0.3, 0.2]).double()
    row, arrays = routing_metrics(routing, token, domain, mixture)
    wanted: dict[str, list[float]] = {}
    for layer in range(2):
        by_domain = [[0] * 6 for _ in range(3)]
        pairs: Counter[tuple[int, int]] = Counter()
        bins = [0] * BINS
        for sequence in range(6):
            for at in range(5):
                experts = routing.expert_index[layer, sequence, at].tolist()
                pairs.update((one, other) for one in experts for other in experts)
                for expert in experts:
                    by_domain[int(domain[sequence])][expert] += 1
                assert routing.weights is not None
                likeliest = routing.weights[layer, sequence, at].detach().max().item()
                bins[int(likeliest * BINS)] += 1
        assert arrays["counts"][layer].tolist() == by_domain
        assert arrays["probability"][layer].tolist() == bins
        together = arrays["coactivation"][layer]
        assert {pair: together[pair] for pair in np.ndindex(6, 6) if together[pair]} == pairs
        given = [[each / sum(counts) for each in counts] for counts in by_domain]
        mixed = [
            sum(w * p[e] for w, p in zip((0.5, 0.3, 0.2), given, strict=True)) for e in range(6)
        ]
        used = [each / mean(mixed) for each in mixed]
        assert row[f"load/utilization/{layer}"] == pytest.approx(used, abs=1e-5)
        overall = [mean([p[e] for p in given]) for e in range(6)]
        bits = [p[e] * math.log2(p[e] / overall[e]) / 3 for p in given for e in range(6) if p[e]]
        commonest = [
            max(pairs[e, o] for o in range(6) if o != e) / pairs[e, e]
            for e in range(6)
            if pairs[e, e]
        ]
        for key, value in {
            "load/max_vio_global": violation(mixed),
            "load/dead_experts_global": mixed.count(0) / 6,
            "load/within_even_share": sum(min(f, 1 / 6) for f in mixed),
            "load/normalized_entropy": -sum(f * math.log(f, 6) for f in mixed if f),
            "specialization/purity": sum(max(p[e] for p in given) for e in range(6)) / 3,
            "specialization/domain_uncorrected": sum(bits),
            "specialization/largest_share": max(2 * each for p in given for each in p),
            "specialization/largest_over_even": mean([6 * max(p) for p in given]),
            "specialization/coactivation": mean(commonest),
        }.items():
            wanted.setdefault(key, []).append(value)
    for key, values in wanted.items():
        assert row[key] == pytest.approx(mean(values)), key


def test_perfectly_balanced() -> None:
    index = torch.arange(8 * 4 * 2).view(8, 4, 2) % 8
    found = told(sent(index, 8), torch.arange(2).repeat_interleave(4))
    for key in ("max_vio_micro", "max_vio_batch", "max_vio_global", "cv", "gini", "drop_rate"):
        assert found[f"load/{key}"] == pytest.approx(0), key
    assert found["load/dead_experts"] == found["load/dead_experts_global"] == 0
    for key in ("entropy", "normalized_entropy", "within_even_share"):
        assert found[f"load/{key}"] == pytest.approx(1), key
    assert found["specialization/purity"] == pytest.approx(1 / 2)
    assert found["train/balance_loss_micro"] == pytest.approx(1)
    assert found["train/balance_loss_global"] == pytest.approx(1)
    assert found["specialization/domain"] == pytest.approx(0)
    assert found["specialization/domain_uncorrected"] == pytest.approx(0)
    assert found["specialization/largest_share"] == pytest.approx(2 / 8)
    assert found["specialization/largest_over_even"] == pytest.approx(1)


def test_collapsed_to_one_expert() -> None:
    found = told(sent(torch.full((8, 4, 1), 3), 8), torch.arange(2).repeat_interleave(4))
    for key in ("max_vio_micro", "max_vio_batch", "max_vio_global"):
        assert found[f"load/{key}"] == pytest.approx(7), key
    assert found["load/cv"] == pytest.approx(math.sqrt(7))
    assert found["load/gini"] == pytest.approx(7 / 8)
    assert found["load/entropy"] == pytest.approx(1 / 8)
    assert found["load/within_even_share"] == pytest.approx(1 / 8)
    assert found["load/normalized_entropy"] == pytest.approx(0)
    assert found["load/dead_experts"] == found["load/dead_experts_global"] == 7 / 8
    assert found["load/drop_rate"] == pytest.approx(1 - 2 / 8), "2 of the 8 in a micro-batch stay"
    assert found["train/balance_loss_micro"] == pytest.approx(8)
    assert found["train/balance_loss_global"] == pytest.approx(8)
    for key in ("domain", "domain_uncorrected", "domain_given_token", "domain_given_position"):
        assert found[f"specialization/{key}"] == pytest.approx(0, abs=1e-9), key
    assert found["specialization/largest_share"] == found["specialization/vocabulary"] == 1


def test_one_expert_a_domain() -> None:
    """Even over all domains, collapsed in each micro-batch: what global balance lets be."""
    domain = torch.arange(4).repeat_interleave(100)
    index = domain[:, None, None].expand(400, 8, 1)
    token = torch.randint(0, 3, (400, 8), generator=torch.Generator().manual_seed(0))
    found = told(sent(index, 4), domain, token)
    assert found["load/max_vio_micro"] == found["train/balance_loss_micro"] - 1 == pytest.approx(3)
    assert found["load/max_vio_batch"] == pytest.approx(0)
    assert found["load/max_vio_global"] == pytest.approx(0)
    assert found["train/balance_loss_global"] == pytest.approx(1)
    assert found["specialization/domain_uncorrected"] == pytest.approx(2)
    assert found["specialization/domain"] == pytest.approx(2, abs=0.05)
    assert found["specialization/domain_given_token"] == pytest.approx(2, abs=0.05)
    assert found["specialization/domain_given_position"] == pytest.approx(2, abs=0.05)
    assert found["specialization/purity"] == 1
    assert found["specialization/largest_share"] == 1


def test_two_experts_always_together() -> None:
    index = torch.tensor([[0, 1], [2, 3]])[torch.arange(32) % 2].view(8, 4, 2)
    found = told(sent(index, 4), torch.arange(2).repeat_interleave(4))
    assert found["specialization/coactivation"] == 1
    assert found["load/max_vio_micro"] == pytest.approx(0), "the loads do not show it"


def test_random_routing_has_the_values_by_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    domain = torch.arange(4).repeat_interleave(50)
    token = torch.randint(0, 5, (200, 64), generator=draw)
    layers = [sent(torch.rand(200, 64, 8, generator=draw).argsort(-1)[..., :2], 8) for _ in "ab"]
    found = told(join(layers, along="layers"), domain, token)
    random = random_values({}, 8, 2)
    for key, value in random.items():
        if key.startswith("specialization/"):
            assert found[key] == pytest.approx(value, abs=0.02), key
    even = torch.full((4, 5, 8), 1 / 8)
    uniform = numbers(observe(even.log(), even, torch.tensor([[[0, 1]]]).expand(4, 5, 2)))
    assert uniform["router/topk_mass"] == pytest.approx(random["router/topk_mass"])


def test_the_probe_is_the_same_sequences_of_many_domains() -> None:
    """Whatever the routers do, so that evaluations, arms and seeds can be set side by side."""
    mixture, token = torch.ones(8).double(), torch.zeros(32, 1, dtype=torch.int64)
    domain = torch.arange(8).repeat_interleave(4)
    for shift in (0, 5):
        index = (torch.arange(32) + shift).view(32, 1, 1)
        _, arrays = routing_metrics(sent(index, 64), token, domain, mixture)
        probed = arrays["probe_index"].ravel() - shift
        assert probed.tolist() == list(range(0, 32, 32 // PROBE))
        assert domain[probed].tolist() == list(range(8))
