"""Every method of balancing, declared: its options, their ranges, and what it needs.

`register` declares a method of your own, in a module that `--plugin` or an entry point of the group
`moebench.methods` names.
"""

from moebench.methods.declaration import Declaration, Option
from moebench.methods.penalising import PENALISING
from moebench.methods.selecting import SELECTING
from moebench.registry import Registry

__all__ = ["LOSS", "METHODS", "SHIPPED", "Declaration", "Option", "declared", "register"]

LOSS = "loss"  # no method acts beside the losses

SHIPPED = (
    Declaration(
        LOSS,
        "nothing but the losses",
        None,
        source="arXiv 2501.11873, Eq. 2",
        equation="E Σ fᵢ Pᵢ, see [balance](balance.md)",
        tested="`test_losses.py`: a loop over tokens; the published gradient",
    ),
    *SELECTING,
    *PENALISING,
)

METHODS = Registry("method", "method.name", Declaration, SHIPPED)
register = METHODS.register
declared = METHODS.get
