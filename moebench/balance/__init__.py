"""Load balancing for Mixture-of-Experts routers over any set of tokens, usable in any trainer.

A forward pass says what its routers did (`Routing`), a scope says whose selection frequency each
sequence's router probabilities meet (`scope.frequency`), and the loss multiplies the two
(`balance_loss`). Small pure functions: no process groups, no globals, and what is carried from step
to step is a value.
"""

from moebench.balance.groups import Groups
from moebench.balance.losses import balance_loss, z_loss
from moebench.balance.method import Method, Steering, make_method, merged
from moebench.balance.routing import (
    Routing,
    counted,
    detached,
    join,
    moved_from,
    no_routing,
    observe,
    of_own_scores,
    selected_mass,
)
from moebench.balance.schedule import Schedule
from moebench.balance.scope import (
    Domain,
    Global,
    Micro,
    Scope,
    Sequence,
    Shuffled,
    make_scope,
)
from moebench.balance.state import BalanceState, Estimator
from moebench.balance.terms import Term

__all__ = [
    "BalanceState",
    "Domain",
    "Estimator",
    "Global",
    "Groups",
    "Method",
    "Micro",
    "Routing",
    "Schedule",
    "Scope",
    "Sequence",
    "Shuffled",
    "Steering",
    "Term",
    "balance_loss",
    "counted",
    "detached",
    "join",
    "make_method",
    "make_scope",
    "merged",
    "moved_from",
    "no_routing",
    "observe",
    "of_own_scores",
    "selected_mass",
    "z_loss",
]
