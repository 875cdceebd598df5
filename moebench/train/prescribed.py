"""Prescribed routers in a run: from tokens and domains to the experts of a map.

The experts enter the model's forward as `Steering.forced`. They depend on the sequence alone, and
so on no split of a step, and are the same in training and evaluation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from moebench.balance.devices import to_device
from moebench.data.maps import BY_DOMAIN, BY_TOKEN, PREFIX, RoutingMap
from moebench.model.noise import GOLDEN, mixed

SPREAD = 2**31  # numbers that the hash of a sequence takes in a layer


@dataclass(frozen=True, eq=False)
class Prescription:
    """A map on a device.

    Attributes:
        table: int16 [layers, rows, slots], the experts of each row.
    """

    map: RoutingMap
    table: Tensor

    @classmethod
    def on(cls, routing_map: RoutingMap | None, device: torch.device) -> "Prescription | None":
        """The map on a device; None without one."""
        if routing_map is None:
            return None
        return cls(routing_map, torch.from_numpy(routing_map.table).to(device))

    def __call__(
        self, tokens: Int[Tensor, "sequences tokens"], domain: Int[Tensor, " sequences"] | None
    ) -> Int[Tensor, "layers sequences tokens slots"]:
        """The experts of each token in the first layers, int16.

        Args:
            tokens: the inputs of whole sequences, from their first token on.
            domain: of each sequence, on any device; may be None if the map is not of domains.
        """
        kind, layers = self.map.kind, len(self.table)
        if kind in BY_TOKEN:
            turn = torch.arange(tokens.shape[1], device=tokens.device) % self.map.turns
            row = (tokens * self.map.turns + turn).expand(layers, *tokens.shape)
        else:
            row = _remainders(tokens, layers, self.map.rows_of_domain)
        if kind in BY_DOMAIN:
            assert domain is not None
            own = to_device(domain, tokens.device) * self.map.rows_of_domain
            row = row + own[:, None]
        layer = torch.arange(layers, device=tokens.device)[:, None, None]
        return self.table[layer, row]


def prefix_hash(tokens: Int[Tensor, "sequences tokens"]) -> Int[Tensor, "sequences tokens"]:
    """A hash of the sequence as each token can know it: of its first tokens, up to that one.

    From token PREFIX on it is one number for the whole sequence. It never depends on later tokens,
    so that experts tell nothing of the text to come, and neither on padding at the end.
    """
    state, found = torch.zeros_like(tokens[:, 0]), []
    for token in tokens[:, :PREFIX].unbind(1):
        state = mixed(state + (token + 1) * GOLDEN)
        found.append(state)
    rest = state[:, None].expand(-1, tokens.shape[1] - len(found))
    return torch.cat([torch.stack(found, 1), rest], 1)


def _remainders(tokens: Tensor, layers: int, number: int) -> Tensor:
    """[layers, sequences, tokens] a row of each layer's table by the hash of the sequence."""
    layer = torch.arange(1, layers + 1, device=tokens.device)[:, None, None]
    return (mixed(prefix_hash(tokens) + layer * GOLDEN) & (SPREAD - 1)) % number
