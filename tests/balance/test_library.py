"""In anyone's trainer: compiled, under vmap, with padding, and with input that cannot be."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moebench.balance import (
    Domain,
    Global,
    Micro,
    Routing,
    Scope,
    Sequence,
    Shuffled,
    balance_loss,
    join,
    observe,
    selected_mass,
    z_loss,
)
from moebench.errors import ConfigError
from tests.routings import literal_balance_loss, random_routing

SCOPES: list[Scope] = [Sequence(), Micro(2), Global(), Global(4), Domain(), Domain(3)]
DRAWS: list[Scope] = [Shuffled(2), Shuffled(2, 4)]
DOMAIN = torch.tensor([0, 1, 0, 2, 1, 1, 0, 2])


def objective(scope: Scope) -> Callable[[Tensor], Tensor]:
    """Balance loss and z-loss of router logits [layers, sequences, tokens, experts]."""

    def of(logits: Tensor) -> Tensor:
        parts = [observe(each, top_k=2) for each in logits.unbind(0)]
        routing = join(parts, along="layers")
        frequency = scope.frequency(routing, domain=DOMAIN)
        return balance_loss(frequency, routing.prob_mass) + z_loss(routing)

    return of


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("scope", [*SCOPES, *DRAWS], ids=str)
def test_every_scope_maps_over_arms_without_a_fallback(scope: Scope) -> None:
    arms = torch.stack([random_routing(seed=seed)[0] for seed in range(3)]).detach()
    of = objective(scope)
    grad = torch.func.grad(of)
    randomness = "same" if scope in DRAWS else "error"
    torch.manual_seed(0)
    mapped = torch.func.vmap(grad, randomness=randomness)(arms)
    for arm, found in zip(arms, mapped, strict=True):
        torch.manual_seed(0)
        assert torch.allclose(found, grad(arm), atol=1e-12)


@pytest.mark.slow
def test_every_scope_compiles_without_a_graph_break() -> None:
    """In a process of its own, since the checks of shapes that tests switch on do not compile."""
    code = """if True:
        import torch
        from tests.balance.test_library import DRAWS, SCOPES, objective
        from tests.routings import random_routing

        logits, _ = random_routing()
        for scope in [*SCOPES, *DRAWS]:
            of = objective(scope)
            compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
            found = []
            for each in (of, compiled):
                torch.manual_seed(0)
                found += torch.autograd.grad(each(logits), logits)
            assert torch.allclose(*found, atol=1e-12), scope
    """
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=300)


def test_a_scope_is_a_row_stochastic_matrix() -> None:
    _, routing = random_routing()
    for scope in SCOPES:
        weights = scope.weights(8, domain=DOMAIN).double()
        assert torch.allclose(weights.sum(1), torch.ones(8, dtype=torch.float64))
        mixed = weights @ routing.counts.double()
        expected = mixed / mixed.sum(-1, keepdim=True)
        found = scope.frequency(routing, domain=DOMAIN).double()
        assert torch.allclose(found, expected, atol=1e-6)


# Padding


def padded(logits: Tensor, mask: Tensor) -> Routing:
    parts = [observe(each, top_k=2, mask=mask) for each in logits.unbind(0)]
    return join(parts, along="layers")


def test_padding_counts_nowhere() -> None:
    """Tokens of a shorter text in a longer batch: as if they were not there."""
    logits, _ = random_routing(tokens=5)
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1, 5, 2, 3, 4])[:, None]
    routing = padded(logits, mask)
    assert routing.tokens is not None
    assert routing.tokens.tolist() == [5, 3, 4, 1, 5, 2, 3, 4]
    assert (routing.counts.sum(-1) == 2 * routing.tokens).all()
    for scope, size in ((Sequence(), 1), (Micro(2), 2), (Global(), 8)):
        found = balance_loss(scope.frequency(routing), routing.prob_mass)
        expected = literal_padded_loss(logits.detach(), mask, size)
        assert found.item() == pytest.approx(expected, rel=1e-6)
    expected = logits.logsumexp(-1).square()[:, mask].mean()
    assert torch.allclose(z_loss(routing), expected)
    (grad,) = torch.autograd.grad(
        balance_loss(Global().frequency(routing), routing.prob_mass), logits
    )
    assert (grad[:, ~mask] == 0).all()


def literal_padded_loss(logits: Tensor, mask: Tensor, size: int) -> float:
    """The mean over layers and groups, weighted by tokens, each group without its padding."""
    total = 0.0
    for start in range(0, 8, size):
        part = slice(start, start + size)
        rows = logits[:, part][:, mask[part]]  # [layers, real tokens, experts]
        alone = literal_balance_loss(rows[:, None], 2, [[0]])
        total += alone * int(mask[part].sum())
    return total / int(mask.sum())


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("given", ["logits", "index", "probs"])
def test_what_padding_holds_changes_neither_loss_nor_gradient(garbage: float, given: str) -> None:
    """Three tokens of which the last is padding: bit for bit each loss of the other two."""
    mask = torch.tensor([[True, True, False]])
    rows = random_routing(tokens=2)[0].detach()[0, :1]  # [1, 2, experts]
    rows = rows.softmax(-1) if given == "probs" else rows
    batch = torch.cat([rows, torch.full_like(rows[:, :1], garbage)], 1).requires_grad_()
    rows.requires_grad_()

    def losses(values: Tensor, mask: Tensor | None) -> list[Tensor]:
        best = values.detach()[:, :2].topk(2).indices
        index = torch.cat([best, torch.full_like(best[:, :1], -1)], 1)[:, : values.shape[1]]
        probs = values if given == "probs" else None
        routing = observe(values, probs, None if given == "logits" else index, top_k=2, mask=mask)
        assert routing.counts.sum() == 4
        of_selected = selected_mass(routing).square().sum()
        balance = balance_loss(Global().frequency(routing), routing.prob_mass)
        return [balance, z_loss(routing), of_selected]

    # one by one, since the order in which autograd adds their gradients is its own
    for loss, wanted in zip(losses(batch, mask), losses(rows, None), strict=True):
        assert loss.item() == wanted.item()
        (grad,) = torch.autograd.grad(loss, batch, retain_graph=True)
        (expected,) = torch.autograd.grad(wanted, rows, retain_graph=True)
        assert expected.abs().max() > 0
        assert torch.equal(grad[:, :2], expected)
        assert (grad[:, 2] == 0).all()


def test_padding_is_drawn_by_no_micro_batch() -> None:
    logits, _ = random_routing(tokens=5)
    mask = torch.ones(8, 5, dtype=torch.bool)
    mask[:, 3:] = False
    routing = padded(logits, mask)
    groups = Shuffled(2).groups(8, 5, mask=mask)
    assert (groups.tally(routing).sum(-1) == 2 * 6).all(), "as many tokens as a micro-batch has"
    whole = Shuffled(8).frequency(routing)
    assert torch.equal(whole, Global().frequency(routing))


def test_uneven_micro_batches_of_equal_frequency_give_equal_gradients() -> None:
    """[4, 4, 4] and [6, 2, 4] tokens: what counts is the tokens of the step, not of a pass."""
    pair = torch.tensor([[2.0, 1.0, 0.0, -1.0], [-1.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
    logits = pair.repeat(6, 1)  # so that any even number of tokens has the same f

    def gradient(lengths: list[int]) -> Tensor:
        rows = logits.clone().requires_grad_()
        longest = max(lengths)
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        batch = rows.new_zeros(3, longest, 4).masked_scatter(mask[..., None], rows)
        routing = observe(batch, top_k=2, mask=mask)
        balance_loss(Micro(1).frequency(routing), routing.prob_mass).backward()
        assert rows.grad is not None
        return rows.grad

    even = gradient([4, 4, 4])
    assert even.abs().max() > 0.01
    assert torch.allclose(even, gradient([6, 2, 4]), atol=1e-16)


def test_the_mass_of_selected_experts_is_the_softmax_over_them() -> None:
    logits, routing = random_routing()
    expected = torch.zeros_like(routing.prob_mass)
    for layer, sequence, token in itertools.product(range(2), range(8), range(5)):
        index = routing.expert_index[layer, sequence, token]
        expected[layer, sequence, index] += logits[layer, sequence, token, index].softmax(-1)
    assert torch.allclose(selected_mass(routing), expected)
    mask = torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    some = selected_mass(padded(logits, mask))
    assert torch.allclose(some.sum(-1), mask.sum(1).double().expand(2, 8))


# Input that cannot be


def with_counts(counts: Tensor) -> Routing:
    return random_routing()[1]._replace(counts=counts)


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        (
            torch.ones(8, 6),
            r"^counts of shape \(8, 6\) beside expert_index of \(2, 8, 5, 2\): must",
        ),
        (torch.ones(2, 4, 6), r"^counts of shape \(2, 4, 6\) beside expert_index of"),
        (torch.full((2, 8, 6), -1), "^counts as low as -1: must be numbers of assignments, 0 or"),
        (torch.full((2, 8, 6), torch.nan), "^counts that are not finite: must be numbers of"),
        (torch.full((2, 8, 6), torch.inf), "^counts that are not finite: must be numbers of"),
        (torch.zeros(2, 8, 6), "^the balance group of sequence 0 in layer 0 has no tokens: must"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts: Tensor, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        Global().frequency(with_counts(counts))
    assert "\n" not in str(caught.value)


def test_a_group_of_padding_alone_is_named() -> None:
    logits, _ = random_routing()
    mask = torch.ones(8, 5, dtype=torch.bool)
    mask[2:4] = False
    with pytest.raises(ConfigError, match=r"^the balance group of sequence 2 in layer 0 has no"):
        Micro(2).frequency(padded(logits, mask))


def test_domains_that_do_not_fit_are_refused() -> None:
    _, routing = random_routing()
    with pytest.raises(
        ConfigError, match=r"^domain=None: Domain needs the domain of each sequence"
    ):
        Domain().frequency(routing)


@pytest.mark.parametrize("size", [0, 3, 16, -2])
def test_a_pass_that_does_not_divide_the_step_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=r"^a logical pass of .*: must divide the 8 there are"):
        Global().groups(8, 5, pass_bsz=size)
    with pytest.raises(ConfigError, match=r"^a logical pass of"):
        Shuffled(2).groups(8, 5, pass_bsz=size)


def test_a_pass_without_a_whole_micro_batch_cannot_be_drawn_from() -> None:
    with pytest.raises(ConfigError, match="must hold whole micro-batches of 4 to draw from"):
        Shuffled(4).groups(8, 5, pass_bsz=2)
