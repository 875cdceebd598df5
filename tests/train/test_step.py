"""Global means global: a step's loss and gradients do not depend on how it is split."""

import pytest
import torch
from torch import Tensor

from moebench.balance import Domain, Global, Micro, Scope, Sequence, Shuffled
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.step import Objective, Outcome, accumulate_gradients

SCOPES: list[Scope | None] = [
    None,
    Sequence(),
    Micro(4),
    Global(),
    Global(8),
    Global(2),
    Shuffled(4),
    Shuffled(4, 8),
    Domain(),
]


def gradients(
    scope: Scope | None, device_bsz: int, dtype: torch.dtype
) -> tuple[Outcome, dict[str, Tensor]]:
    model = MoETransformer(
        vocab_size=16,
        d_model=16,
        num_layers=2,
        num_heads=2,
        num_experts=4,
        top_k=2,
        expert_dim=8,
        compute=dtype,
    )
    initialize(model, 0)
    with torch.no_grad():
        for layer in range(2):  # routers that have something to balance
            model.get_parameter(f"blocks.{layer}.router.weight").mul_(20)
    generator = torch.Generator().manual_seed(0)
    # each micro-batch of 4 keeps to a range of tokens of its own, as to a domain
    low = torch.arange(4).repeat_interleave(4)[:, None] * 4
    tokens = low + torch.randint(0, 4, (16, 9), generator=generator)
    outcome = accumulate_gradients(
        model,
        Objective(scope, micro_bsz=4, balance=10.0, local=0.01, z=0.1),
        tokens,
        device_bsz=device_bsz,
        domain=torch.arange(4).repeat_interleave(4).roll(3),
        generator=torch.Generator().manual_seed(7),
    )
    return outcome, {
        name: each.grad for name, each in model.named_parameters() if each.grad is not None
    }


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("device_bsz", [8, 4, 2, 1])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
def test_every_split_gives_the_same(
    scope: Scope | None, device_bsz: int, dtype: torch.dtype, bound: float
) -> None:
    whole, expected = gradients(scope, 16, dtype)
    split, found = gradients(scope, device_bsz, dtype)
    assert torch.allclose(split.cross_entropy, whole.cross_entropy, rtol=bound)
    for one, other in zip(split.frequency, whole.frequency, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(split.routing.expert_index, whole.routing.expert_index)
    for name, each in expected.items():
        error = (found[name] - each).norm() / each.norm()
        assert error < bound, name


def test_scopes_differ_where_micro_batches_do() -> None:
    _, micro = gradients(Micro(4), 16, torch.float64)
    _, whole = gradients(Global(), 16, torch.float64)
    name = "blocks.0.router.weight"
    assert (micro[name] - whole[name]).norm() > 0.1 * whole[name].norm()


def test_no_balance_term_is_in_the_reported_cross_entropy() -> None:
    none, _ = gradients(None, 16, torch.float64)
    whole, _ = gradients(Global(), 16, torch.float64)
    assert torch.equal(none.cross_entropy, whole.cross_entropy)


def test_an_unbalanced_objective_has_no_terms() -> None:
    assert Objective(None, 4, balance=1.0, local=0.5, z=0.0).terms == []
    assert Objective(Global(), 4, balance=0.0, local=0.5, z=0.0).terms == []
    assert Objective(Global(), 4, balance=2.0, local=0.5, z=0.0).terms == [
        (Global(), 2.0),
        (Micro(4), 1.0),
    ]
