"""Any model's routing, seen and balanced through hooks on its modules."""

from moebench.hooks.balancer import Balancer
from moebench.hooks.trainer import balance_trainer

__all__ = ["Balancer", "balance_trainer"]
