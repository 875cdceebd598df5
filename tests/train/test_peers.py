"""Each peer's preset computes what that system computes, on equal logits.

The literal forms follow the named functions of the peers step by step, with their normalisations.
They do not use scopes, estimators or conventions.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moebench.balance import balance_loss, counted, join, observe, selected_mass
from moebench.config.compose import Composer
from moebench.train.build import make_model, make_objective
from tests.routings import random_routing, route

LAYERS, SEQUENCES, TOKENS, EXPERTS, K, MICRO = 3, 8, 5, 6, 2, 2
COMPOSER = Composer()

Probs = Tensor  # [layers, sequences, tokens, experts]


def one_hot(probs: Tensor) -> Tensor:
    """[..., k, experts] of each token's top-k."""
    return torch.nn.functional.one_hot(probs.topk(K, -1).indices, EXPERTS).double()


def micro_batches(layer: Tensor) -> list[Tensor]:
    """[tokens, experts] of each micro-batch of a layer."""
    return [each.flatten(0, 1) for each in layer.split(MICRO)]


def minimind_v1(probs: Probs) -> float:
    return 0.0


def minimind_v2(probs: Probs) -> float:
    """`MoEGate`, seq_aux: counts over T k / E times mean scores, summed over layers."""
    total = 0.0
    for layer in probs:
        for sequence in layer:
            ce = one_hot(sequence).sum((0, 1)) / (TOKENS * K / EXPERTS)
            total += 0.1 * (ce * sequence.mean(0)).sum().item() / SEQUENCES
    return total


def minimind_3(probs: Probs) -> float:
    """`MOEFeedForward.forward`, summed over layers, mean over accumulated micro-batches."""
    total = 0.0
    for layer in probs:
        for scores in micro_batches(layer):
            load = one_hot(scores).mean(0)  # [k, experts]
            loss = (load * scores.mean(0)).sum() * EXPERTS * 5e-4
            total += loss.item() / (SEQUENCES / MICRO)
    return total


def maxtext(probs: Probs, mass: Probs | None = None) -> float:
    """`load_balance_loss`: mean(density * density_prob) * E^2 * weight, mean over layers."""
    total = 0.0
    for layer, met in zip(probs, probs if mass is None else mass, strict=True):
        density = one_hot(layer).sum(2).mean(1)  # [batch, experts]
        density_prob = met.mean(1)
        total += (density * density_prob).mean().item() * EXPERTS**2 * 0.01
    return total / LAYERS


def maxtext_before(probs: Probs) -> float:
    """An earlier version: the probabilities are the softmax over the top-k logits, 0 elsewhere."""
    top = probs.topk(K, -1)
    mass = torch.zeros_like(probs).scatter(-1, top.indices, top.values.log().softmax(-1))
    return maxtext(probs, mass)


def switch_loss(probs: Tensor, counts: Tensor, tokens: int) -> float:
    """`switch_load_balancing_loss_func`: sum(sum of P * counts) * E * coeff / (k T^2)."""
    return (probs.sum(0) * counts).sum().item() * EXPERTS * 0.01 / (K * tokens**2)


def megatron_micro(probs: Probs) -> float:
    total = 0.0
    for layer in probs:
        for each in micro_batches(layer):
            loss = switch_loss(each, one_hot(each).sum((0, 1)), MICRO * TOKENS)
            total += loss / (SEQUENCES / MICRO)
    return total


def megatron_sequence(probs: Probs) -> float:
    total = 0.0
    for layer in probs:
        for each in layer:
            total += switch_loss(each, one_hot(each).sum((0, 1)), TOKENS) / SEQUENCES
    return total


def megatron_global(probs: Probs) -> float:
    """Counts and `ga_steps` grow over the micro-batches; f is their quotient."""
    total = 0.0
    for layer in probs:
        seen, ga_steps = torch.zeros(EXPERTS).double(), 0
        for each in micro_batches(layer):
            seen, ga_steps = seen + one_hot(each).sum((0, 1)), ga_steps + 1
            total += switch_loss(each, seen / ga_steps, MICRO * TOKENS) / (SEQUENCES / MICRO)
    return total


def olmo_core(probs: Probs) -> float:
    """`load_balancing_loss`: E / (k T) * counts * mean scores; 0.01 over the number of layers."""
    total = 0.0
    for layer in probs:
        for each in micro_batches(layer):
            counts = one_hot(each).sum((0, 1))
            scale = EXPERTS / (K * MICRO * TOKENS)
            loss = scale * (counts * each.mean(0)).sum().item()
            total += 0.01 / LAYERS * loss / (SEQUENCES / MICRO)
    return total


def megablocks(probs: Probs) -> float:
    """`batched_load_balancing_loss`: E weight / (L T k) times counts dot mean scores."""
    total = 0.0
    for number in range(SEQUENCES // MICRO):
        parts = [micro_batches(layer)[number] for layer in probs]
        counts = torch.cat([one_hot(each).sum((0, 1)) for each in parts])
        scores = torch.cat([each.mean(0) for each in parts])
        scale = EXPERTS * 0.1 / (LAYERS * MICRO * TOKENS * K)
        total += scale * torch.dot(counts, scores).item() / (SEQUENCES / MICRO)
    return total


def gshard(probs: Probs) -> float:
    """Tutel's `gshard_loss`: sums of scores times counts of first choices times E / T, over T."""
    total = 0.0
    for layer in probs:
        for each in micro_batches(layer):
            tokens = MICRO * TOKENS
            first = torch.bincount(each.argmax(-1), minlength=EXPERTS).double() * EXPERTS / tokens
            loss = (each.sum(0) * first).sum().item() / tokens
            total += 0.01 * loss / (SEQUENCES / MICRO)
    return total


def huggingface(probs: Probs, family: str = "qwen3_moe") -> float:
    """The function of `transformers`, called with each micro-batch."""
    transformers = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    total = 0.0
    for number in range(SEQUENCES // MICRO):
        part = probs[:, number * MICRO : (number + 1) * MICRO]
        logits = tuple(layer.flatten(0, 1).log() for layer in part)
        loss = transformers.load_balancing_loss_func(logits, EXPERTS, K)
        total += 0.001 * loss.item() / (SEQUENCES / MICRO)
    return total


def qwen(probs: Probs, seen: Callable[[int], range]) -> float:
    """N_E sum_i f_i P_i; `seen` returns the micro-batches whose counts are in a micro-batch's f."""
    total = 0.0
    for layer in probs:
        parts = micro_batches(layer)
        for number, each in enumerate(parts):
            counts = torch.stack([one_hot(parts[other]).sum((0, 1)) for other in seen(number)])
            f = counts.sum(0) / counts.sum()
            loss = EXPERTS * (f * each.mean(0)).sum().item()
            total += 0.008 * loss / len(parts) / LAYERS
    return total


EVERY = range(SEQUENCES // MICRO)
LITERAL: dict[str, Callable[[Probs], float]] = {
    "minimind-v1": minimind_v1,
    "minimind-v2": minimind_v2,
    "minimind-3": minimind_3,
    "maxtext-before": maxtext_before,
    "maxtext": maxtext,
    "megatron-micro": megatron_micro,
    "megatron-sequence": megatron_sequence,
    "megatron-global": megatron_global,
    "olmo-core": olmo_core,
    "gshard": gshard,
    "megablocks": megablocks,
    "huggingface": huggingface,
    "qwen3-next": lambda probs: huggingface(probs, "qwen3_next"),
    "qwen-micro": lambda probs: qwen(probs, lambda number: range(number, number + 1)),
    "qwen-sync": lambda probs: qwen(probs, lambda number: EVERY),
    "qwen-buffer": lambda probs: qwen(probs, lambda number: range(number + 1)),
}


def balance_part(
    experiment: str, step: int = 1, logits: Tensor | None = None
) -> tuple[float, Tensor]:
    """The balance terms of a preset's objective on some routing, and its probabilities."""
    shape = {"top_k": K, "num_experts": EXPERTS, "num_layers": LAYERS}
    config = COMPOSER.compose(
        [
            *(f"experiment={experiment}", f"micro_bsz={MICRO}", f"global_bsz={SEQUENCES}"),
            *(f"model.{key}={value}" for key, value in shape.items()),
        ]
    )
    objective = make_objective(config, ["one"])
    if logits is None:
        logits = random_routing(LAYERS, SEQUENCES, TOKENS, EXPERTS, K)[0].detach()
    routing = route(logits, K)
    if config.balance.counts == "first":
        first = routing.expert_index[..., :1]
        counts = torch.stack([counted(each, EXPERTS) for each in first])
        routing = routing._replace(expert_index=first, counts=counts)
    routing = routing._replace(counts=routing.counts.double())
    mass = routing.prob_mass if objective.probs == "full" else selected_mass(routing)
    total = 0.0
    for term in objective.terms:
        groups = term.scope.groups(
            SEQUENCES,
            TOKENS,
            generator=torch.Generator().manual_seed(0),
            pass_bsz=objective.estimator.prefix,
        )
        f = objective.estimator.frequency(groups, groups.tally(routing), None)
        value = balance_loss(f, mass, total=SEQUENCES * TOKENS, layers=objective.layers)
        total += term.weight_at(step) * objective.uniform * value.item()
    return total, logits.softmax(-1)


@pytest.mark.parametrize("experiment", LITERAL)
def test_a_preset_computes_what_the_system_does(experiment: str) -> None:
    found, probs = balance_part(experiment)
    # Hugging Face's softmax is in fp32
    rel = 1e-7 if experiment in ("huggingface", "qwen3-next") else 1e-12
    assert found == pytest.approx(LITERAL[experiment](probs), rel=rel)


def test_shuffled_is_nearer_to_the_whole_step_than_micro_is() -> None:
    """qwen-shuffle is random: its value is near that of sync, but not equal."""
    shuffled, micro, sync = (
        balance_part(f"qwen-{each}")[0] for each in ("shuffle", "micro", "sync")
    )
    assert shuffled != sync
    assert abs(shuffled - sync) < abs(micro - sync)


def test_one_percent_of_micro_starts_after_a_third_of_the_steps() -> None:
    sync, micro = (balance_part(f"qwen-{each}")[0] for each in ("sync", "micro"))
    assert balance_part("qwen-sync-micro", step=133)[0] == pytest.approx(sync, rel=1e-12)
    both = balance_part("qwen-sync-micro", step=134)[0]
    assert both == pytest.approx(sync + 0.01 * micro, rel=1e-12)


UNIFORM = {
    "minimind-v2": 0.1 * LAYERS,
    "minimind-3": 5e-4 * LAYERS * K,
    "maxtext": 0.01 * K,
    "megatron-micro": 0.01 * LAYERS,
    "megatron-sequence": 0.01 * LAYERS,
    "megatron-global": 0.01 * LAYERS,
    "olmo-core": 0.01,
    "huggingface": 0.001 * K,
    "qwen-sync": 0.008,
}


@pytest.mark.parametrize("experiment", UNIFORM)
def test_the_value_at_uniform_routing_is_the_published_convention(experiment: str) -> None:
    logits = torch.zeros(LAYERS, SEQUENCES, TOKENS, EXPERTS, dtype=torch.float64)
    found, probs = balance_part(experiment, logits=logits)
    assert found == pytest.approx(UNIFORM[experiment], rel=1e-6)
    assert LITERAL[experiment](probs) == pytest.approx(UNIFORM[experiment], rel=1e-6)


def test_deepseek_v3_computes_its_equations_17_to_20() -> None:
    config = COMPOSER.compose(["experiment=deepseek-v3"])
    assert (config.router.gate, config.router.renormalize) == ("sigmoid", True)
    assert (config.method.name, config.method.options["rate"]) == ("bias", 0.001)
    objective = make_objective(config, ["one"])
    logits = random_routing(LAYERS, SEQUENCES, TOKENS, EXPERTS, K)[0].detach()
    scores = logits.sigmoid()
    normal = scores / scores.sum(-1, keepdim=True)
    chosen = scores.topk(K, -1).indices
    routing = join(
        [observe(*each) for each in zip(logits, normal, chosen, strict=True)], along="layers"
    )
    (term,) = objective.terms
    f = term.scope.frequency(routing._replace(counts=routing.counts.double()))
    found = balance_loss(f, routing.prob_mass, layers=objective.layers) * term.weight
    expected = 0.0
    for layer in range(LAYERS):
        for sequence in range(SEQUENCES):
            for expert in range(EXPERTS):
                hits = (chosen[layer, sequence] == expert).sum().item()
                mean = normal[layer, sequence, :, expert].mean().item()
                expected += 1e-4 * (EXPERTS / (K * TOKENS)) * hits * mean / SEQUENCES
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_web_snippet_has_its_own_gate_and_no_other_loss() -> None:
    config = COMPOSER.compose(["experiment=web-snippet"])
    assert (config.scope, config.method.name) == ("none", "snippet")
    assert config.method.options == {"weight": 0.01, "every": 128}
    assert (config.router.form, config.router.gate_bias) == ("mlp", True)


COUNTS = {
    "deepseek-v3": "scores",  # Eq. 18
    "megatron-micro": "scores",  # compute_routing_scores_for_aux_loss
    "megatron-sequence": "scores",
    "megatron-global": "scores",
    "maxtext": "biased",
    "maxtext-before": "biased",
    "olmo-core": "biased",
}


@pytest.mark.parametrize("experiment", COUNTS)
def test_a_preset_counts_what_the_system_does_under_groups_and_a_bias(experiment: str) -> None:
    groups = ["router.expert_groups=4", "router.top_groups=2", "method=bias"]
    config = COMPOSER.compose([f"experiment={experiment}", *groups, "method.name=bias"])
    assert make_model(config, 16).gating.counts == COUNTS[experiment]


def test_kimi_k3_and_megatron_read_other_scores() -> None:
    kimi = COMPOSER.compose(["experiment=kimi-k3"])
    assert (kimi.scope, kimi.method.options) == ("none", {"decay": 0, "logits": 0})
    gating = make_model(kimi, 16).gating
    assert (gating.gate, gating.by_logits) == ("sigmoid", False)
    for gate in ("softmax", "sigmoid"):
        megatron = COMPOSER.compose(["method=quantile_logits", f"router={gate}"])
        assert make_model(megatron, 16).gating.by_logits
