"""Routers against literal loops: gates, groups of experts, capacity, noise and evaluation."""

import math

import pytest
import torch
from torch import Tensor

from moebench.balance import Global, Steering, balance_loss, of_own_scores
from moebench.balance.assignment import capacity
from moebench.errors import ConfigError
from moebench.metrics.batch import batch_metrics
from moebench.model import noise
from moebench.model.gate import gated
from moebench.model.router import Counts, Drop, Gating, Router
from moebench.model.selection import Worth, within_capacity, within_top_groups
from moebench.model.transformer import MoETransformer, initialize

FP64 = torch.float64
GATINGS = {
    "softmax": Gating(),
    "raw": Gating(renormalize=False),
    "topk_softmax": Gating("topk_softmax"),
    "sigmoid": Gating("sigmoid"),
    "sqrt_softplus": Gating("sqrt_softplus", renormalize=False),
    "sparsemax": Gating("sparsemax"),
    "relu": Gating("relu", renormalize=False),
    "cosine": Gating(form="cosine"),
    "mlp": Gating(form="mlp", bias=True),
    "jitter": Gating(jitter=0.3),
    "noise": Gating(noise=1.0),
    "random": Gating(random=True),
    "grouped": Gating("sigmoid", expert_groups=4, top_groups=2),
    "by logits": Gating("sigmoid", by_logits=True),
    "capacity": Gating(capacity_factor=1.0, group_bsz=2),
    "position": Gating(capacity_factor=0.5, group_bsz=2, drop="position"),
    "weight": Gating("sigmoid", capacity_factor=0.5, group_bsz=2, drop="weight"),
    "relu with a capacity": Gating("relu", capacity_factor=0.5, group_bsz=2),
}


def model_of(name: str, **more: object) -> MoETransformer:
    model = MoETransformer(
        vocab_size=16,
        d_model=16,
        num_layers=2,
        num_heads=2,
        num_experts=8,
        top_k=2,
        expert_dim=8,
        compute=FP64,
        gating=GATINGS[name],
        **more,  # pyright: ignore
    )
    initialize(model, 0)
    with torch.no_grad():
        for weight in model.router_weights:
            weight.mul_(20)
    return model


def tokens(sequences: int = 4) -> Tensor:
    return torch.randint(0, 16, (sequences, 6), generator=torch.Generator().manual_seed(0))


def values_of(gate: str, z: list[float]) -> tuple[list[float], list[float]]:
    """Weights before renormalisation, and the distribution that is balanced, from the formulas."""
    if gate in ("softmax", "topk_softmax"):
        whole = sum(math.exp(each) for each in z)
        probs = [math.exp(each) / whole for each in z]
        return probs, probs
    of = {
        "sigmoid": lambda each: 1 / (1 + math.exp(-each)),
        "sqrt_softplus": lambda each: math.log(1 + math.exp(each)) ** 0.5,
        "relu": lambda each: max(0.0, each),
    }[gate]
    scores = [of(each) for each in z]
    return scores, [each / sum(scores) for each in scores]


@pytest.mark.parametrize("gate", ["softmax", "topk_softmax", "sigmoid", "sqrt_softplus", "relu"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_a_gate_equals_its_formula(gate: str, renormalize: bool) -> None:
    torch.manual_seed(0)
    router = Router(8, 5, 2, Gating(gate, renormalize=renormalize)).double()  # pyright: ignore
    torch.nn.init.normal_(router.weight)
    x = torch.randn(2, 3, 8, dtype=FP64)
    found = router(x)
    mass = torch.zeros(2, 5, dtype=FP64)
    for sequence in range(2):
        for token in range(3):
            z = (router.weight @ x[sequence, token]).tolist()
            values, probs = values_of(gate, z)
            best = sorted(range(5), key=lambda expert: -z[expert])
            chosen = [e for e in best if values[e] > 0] if gate == "relu" else best[:2]
            index = found.routing.expert_index[0, sequence, token].tolist()
            assert [each for each in index if each >= 0] == chosen
            scale = sum(values[e] for e in chosen)
            scale = scale if renormalize or gate == "topk_softmax" else 1
            weights = [values[e] / scale for e in chosen]
            got = found.weights[sequence, token]
            assert torch.allclose(got[: len(chosen)], torch.tensor(weights, dtype=FP64))
            assert (got[len(chosen) :] == 0).all()
            mass[sequence] += torch.tensor(probs, dtype=FP64)
    assert torch.allclose(found.routing.prob_mass[0], mass)
    selected = (found.routing.expert_index[0] >= 0).sum((1, 2))
    assert torch.equal(found.routing.counts[0].sum(-1), selected)


def test_an_expert_of_sparsemax_probability_0_is_not_selected() -> None:
    router = Router(2, 4, 2, Gating("sparsemax"))
    router.weight.data = torch.tensor([[9.0, 0], [0, 0], [0, 0], [0, 1]])
    found = router(torch.tensor([[[1.0, 0], [0, 0.5]]]))
    assert found.routing.expert_index[0, 0].tolist()[0] == [0, -1]
    assert found.routing.counts.sum() == 1 + 2
    assert torch.equal(found.weights[0, 0], torch.tensor([1.0, 0]))


def test_the_cosine_and_mlp_forms_equal_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, dtype=FP64)
    for form in ("cosine", "mlp"):
        router = Router(8, 4, 2, Gating(form=form, bias=True)).double()  # pyright: ignore
        for each in router.parameters():
            torch.nn.init.normal_(each)
        low = router.hidden @ x[0, 0]
        if form == "mlp":
            z = router.weight @ low.relu()
        else:
            cosines = [low @ w / (low.norm() * w.norm()) for w in router.weight]
            z = torch.exp(router.temperature) * torch.stack(cosines)
        expected = (z + router.bias).softmax(-1)
        assert torch.allclose(router(x).routing.prob_mass[0, 0], expected)


@pytest.mark.parametrize(("worth", "summed"), [("top_two", 2), ("max", 1), ("share", 3)])
def test_groups_of_experts_equal_a_loop(worth: Worth, summed: int) -> None:
    scores = (
        torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)) - 3
    )  # negative ones too
    found = within_top_groups(scores, 4, 2, worth, top_k=7)
    for row, kept in zip(scores.flatten(0, 1), found.flatten(0, 1), strict=True):
        sums = [sum(sorted(row[g * 3 : g * 3 + 3].tolist())[-summed:]) for g in range(4)]
        best = sorted(range(4), key=lambda group: -sums[group])[:2]
        for expert in range(12):
            expected = row[expert] if expert // 3 in best else -math.inf
            assert kept[expert] == expected


def router_of(scores: list[float], gating: Gating) -> Router:
    """A router whose sigmoid scores are these for the input [1]."""
    router = Router(1, len(scores), 2, gating).double()
    router.weight.data = torch.tensor(scores, dtype=FP64).logit().unsqueeze(-1)
    return router


@pytest.mark.parametrize(
    ("counts", "expected", "loss"),
    [("scores", [1, 0, 1, 0], 1.4286), ("grouped", [0, 0, 1, 1], 1.0476)],
)
def test_f_counts_the_scores_or_the_selection_within_groups(
    counts: Counts, expected: list[int], loss: float
) -> None:
    gating = Gating("sigmoid", expert_groups=2, top_groups=1, counts=counts)
    routing = router_of([0.9, 0.1, 0.6, 0.5], gating)(torch.ones(1, 1, 1, dtype=FP64)).routing
    assert routing.counts.tolist() == [[[0, 0, 1, 1]]]
    f = Global().frequency(of_own_scores(routing))
    assert (2 * f).tolist() == [[expected]]
    assert balance_loss(f, routing.prob_mass).item() == pytest.approx(loss, abs=5e-5)


@pytest.mark.parametrize("counts", ["scores", "grouped", "biased"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_what_f_counts_equals_a_loop(counts: Counts, groups: int, biased: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    top_groups = max(1, groups // 2)
    router = Router(
        8, 8, 2, Gating("sigmoid", expert_groups=groups, top_groups=top_groups, counts=counts)
    )
    router.weight.data = torch.randn(8, 8, generator=draw)
    x, bias = torch.randn(2, 9, 8, generator=draw), torch.randn(8, generator=draw) / 3
    found = router(x, Steering(bias=bias) if biased else None).routing

    def best(scores: list[float], number: int) -> list[int]:
        size, worth = 8 // number, []
        for group in range(number):
            top = sorted(scores[group * size : (group + 1) * size])[-2:]
            worth.append((-sum(top), group))
        inside = [group for _, group in sorted(worth)[: max(1, number // 2)]]
        there = [expert for expert in range(8) if expert // size in inside]
        return sorted(there, key=lambda expert: -scores[expert])[:2]

    expected, load, moved = torch.zeros(2, 8), torch.zeros(2, 8), [0, 0]
    for sequence in range(2):
        for token in range(9):
            scores = (router.weight @ x[sequence, token]).sigmoid()
            with_bias = (scores + bias if biased else scores).tolist()
            actual = best(with_bias, groups)
            plain, grouped = best(scores.tolist(), 1), best(scores.tolist(), groups)
            for expert in {"scores": plain, "grouped": grouped, "biased": actual}[counts]:
                expected[sequence, expert] += 1
            load[sequence, actual] += 1
            moved[sequence] += len(set(actual) - set(grouped))
    assert torch.equal(of_own_scores(found).counts[0].float(), expected)
    index = of_own_scores(found).expert_index[0].flatten(1)
    assert torch.equal(torch.nn.functional.one_hot(index, 8).sum(1).float(), expected)
    assert torch.equal(found.counts[0].float(), load)
    assert found.moved is None if not biased else found.moved.tolist() == [moved]


def test_f_counts_no_expert_without_a_share_of_sparsemax() -> None:
    router = Router(2, 4, 2, Gating("sparsemax"))
    router.weight.data = torch.tensor([[9.0, 0], [0, 0], [0, 0], [0, 1]])
    x = torch.tensor([[[1.0, 0], [0, 0.5]]])
    plain = router(x).routing
    biased = router(x, Steering(bias=torch.tensor([0.0, 2, 0, 0]))).routing
    assert torch.equal(of_own_scores(biased).counts, plain.counts)
    assert torch.equal(of_own_scores(biased).expert_index, plain.expert_index)
    assert not torch.equal(biased.counts, plain.counts)


@pytest.mark.parametrize(("drop", "kept"), [("probability", 0), ("weight", 1), ("position", 0)])
def test_a_full_expert_keeps_the_highest_score_or_the_highest_weight(drop: Drop, kept: int) -> None:
    """0.5 is above 0.4, and 0.40 / 0.70 = 0.571 above 0.50 / 0.98 = 0.510."""
    probs = torch.tensor([[0.50, 0.48, 0.01, 0.01], [0.40, 0.02, 0.30, 0.28]], dtype=FP64)
    router = Router(2, 4, 2, Gating(capacity_factor=1.0, drop=drop)).double()
    router.weight.data = probs.log().T
    found = router(torch.eye(2, dtype=FP64)[None])
    assert found.expert_index[0, :, 0].tolist() == [0, 0]
    weights = found.weights[0, :, 0].tolist()
    assert weights[kept] == pytest.approx([0.50 / 0.98, 0.40 / 0.70][kept])
    assert weights[1 - kept] == 0
    assert found.routing.dropped is not None
    assert found.routing.dropped.tolist() == [[1]]


@pytest.mark.parametrize("by_priority", [True, False])
def test_capacity_equals_a_loop(by_priority: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    index = torch.rand(3, 10, 4, generator=draw).argsort(-1)[..., :2]
    selected = torch.rand(3, 10, 2, generator=draw) > 0.2
    priority = torch.rand(3, 10, 2, generator=draw)
    found = within_capacity(index, selected, priority if by_priority else None, 4, 3)
    for group in range(3):
        pairs = [(t, s) for t in range(10) for s in range(2) if selected[group, t, s]]
        if by_priority:
            pairs.sort(key=lambda pair: -float(priority[group][pair]))
        room = [3] * 4
        for pair in pairs:
            expert = int(index[group][pair])
            assert bool(found[group][pair]) == (room[expert] > 0)
            room[expert] -= 1
    assert not (found & ~selected).any()
    assert capacity(1.1, 160, 2, 32) == 11


def test_dropped_assignments_have_no_weight_and_are_counted() -> None:
    model = model_of("capacity")
    routing = model(tokens())[1]
    most = capacity(1.0, 2 * 6, 2, 8)
    assert routing.dropped is not None
    by_group = routing.counts.unflatten(1, (2, 2)).sum(2)
    over = (by_group - most).clamp(min=0).sum(-1)
    assert torch.equal(routing.dropped.unflatten(1, (2, 2)).sum(-1), over)
    assert over.sum() > 0
    assert (routing.counts.sum(-1) == 12).all()


def test_a_pass_that_would_split_a_logical_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a pass of 3 sequences: would split .* groups of 2"):
        model_of("capacity")(tokens(3))


@pytest.mark.parametrize("name", GATINGS)
def test_training_and_evaluation_differ_by_noise_alone(name: str) -> None:
    model = model_of(name)
    steering = Steering(noise=noise.keys(0, 4))
    trained, routing = model(tokens(), steering, training=True)
    with torch.no_grad():
        evaluated, other = model(tokens(), steering)
    equal = torch.allclose(trained, evaluated, atol=1e-12)
    assert equal == (name not in ("jitter", "noise"))
    if equal:
        assert torch.equal(routing.expert_index, other.expert_index)
    (trained.square().sum() + routing.prob_mass.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", GATINGS)
def test_a_split_into_logical_groups_changes_nothing(name: str) -> None:
    model, steering = model_of(name), Steering(noise=noise.keys(0, 4))
    whole, routing = model(tokens(), steering, training=True)
    for start in (0, 2):
        own = slice(start, start + 2)
        part, of_part = model(tokens()[own], steering.of(own), training=True)
        assert torch.allclose(part, whole[own], atol=1e-12)
        assert torch.equal(of_part.expert_index, routing.expert_index[:, own])


@pytest.mark.parametrize("name", [each for each in GATINGS if each != "grouped"])
def test_a_masked_expert_has_no_tokens_and_no_probability(name: str) -> None:
    model = model_of(name)
    mask = torch.tensor([[True] * 5 + [False] * 3, [False] * 3 + [True] * 5])
    logits, routing = model(tokens(), Steering(mask=mask, noise=noise.keys(0, 4)), training=True)
    assert (routing.counts.sum(1)[~mask] == 0).all()
    assert (routing.prob_mass.sum(1)[~mask] == 0).all()
    if "relu" not in name:  # a token of a relu gate may have no expert
        assert torch.allclose(routing.prob_mass.sum(-1), torch.full((2, 4), 6, dtype=FP64))
    logits.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_draws_are_uniform_or_normal_and_uncorrelated() -> None:
    key = noise.keys(3, 20)
    u, n = noise.uniform(key, 0, 64, 32), noise.normal(key, 1, 64, 32)
    assert 0 < u.min() < u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.01)
    assert u.var() == pytest.approx(1 / 12, abs=0.01)
    assert (n.mean(), n.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    for other in (noise.uniform(key, 1, 64, 32), noise.uniform(key.flip(0), 0, 64, 32)):
        assert abs(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1]) < 0.02
    assert torch.equal(u[5:9], noise.uniform(key[5:9], 0, 64, 32))
    assert not torch.equal(key, noise.keys(4, 20))


def test_a_random_router_uses_experts_evenly() -> None:
    routing = model_of("random")(tokens(4).repeat(50, 1), Steering(noise=noise.keys(0, 200)))[1]
    share = routing.counts.sum(1) / routing.counts.sum((1, 2))[:, None]
    assert (share - 1 / 8).abs().max() < 0.02


def test_dense_layers_have_the_active_parameters_of_the_others() -> None:
    moe, some, none = (model_of("softmax", dense_layers=n) for n in (0, 1, 2))
    assert (some.router_shape, none.router_shape) == ((1, 8), (0, 8))
    logits, routing = none(tokens())
    assert routing.counts.shape == (0, 4, 8)
    assert logits.isfinite().all()
    active = sum(p[0].numel() * 2 for n, p in moe.named_parameters() if ".experts." in n)
    assert active == sum(p.numel() for n, p in none.named_parameters() if ".dense." in n)
    shared = dict(moe.named_parameters())
    for name, each in some.named_parameters():
        assert ".dense." in name or torch.equal(each, shared[name])


def test_gates_return_distributions() -> None:
    z = torch.randn(2, 3, 5, dtype=FP64) * 3
    for name in ("softmax", "topk_softmax", "sigmoid", "sqrt_softplus", "sparsemax"):
        assert torch.allclose(gated(name, z).probs.sum(-1), torch.ones(2, 3, dtype=FP64))


def test_experts_are_taken_in_turn_and_capacities_are_reserved() -> None:
    torch.manual_seed(0)
    router = Router(6, 8, 2, Gating(round_robin=True, capacity_factor=1.5, group_bsz=2)).double()
    torch.nn.init.normal_(router.weight)
    x = torch.randn(4, 12, 6, dtype=FP64)
    found = router(x)
    for token in range(12):
        assert found.expert_index[0, token].tolist() == [(2 * token + j) % 8 for j in range(2)]
    assert (found.routing.counts == 3).all()
    assert found.routing.dropped is not None
    assert found.routing.dropped.sum() == 0
    # ceil(1.5 * 24 * 2 / 8) = 9 rows of each of 8 experts for a group of two sequences
    assert found.routing.reserved is not None
    assert found.routing.reserved.tolist() == [[9 * 8 / 2] * 4]
    metric = batch_metrics(found.routing, 2)["load/padding"]
    assert metric.item() == pytest.approx(1 - 6 / 9)
