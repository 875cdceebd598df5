"""Load balancing for Mixture-of-Experts routers over any set of tokens, usable in any trainer.

A forward pass says what its routers did (`Routing`), a scope says whose selection frequency each
sequence's router probabilities meet (`scope.frequency`), and the loss multiplies the two
(`balance_loss`). Small pure functions: no state, no process groups, no globals.
"""

from moebench.balance.losses import balance_loss, z_loss
from moebench.balance.routing import Routing, detached, join, observe
from moebench.balance.scope import Domain, Global, Micro, Scope, Sequence, Shuffled, make_scope

__all__ = [
    "Domain",
    "Global",
    "Micro",
    "Routing",
    "Scope",
    "Sequence",
    "Shuffled",
    "balance_loss",
    "detached",
    "join",
    "make_scope",
    "observe",
    "z_loss",
]
