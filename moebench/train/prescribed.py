"""Prescribed routers in a run: experts from a map of tokens and domains, or from a recorded run.

The experts enter the model's forward as `Steering.forced`. They depend on the sequence alone, and
so on no split of a step. A map is the same in training and evaluation; a recording holds both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from moebench.balance.devices import to_device
from moebench.config.replayed import replays
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import map_layers
from moebench.data.corpus import Corpus
from moebench.data.maps import BY_DOMAIN, BY_TOKEN, PREFIX, RoutingMap, make_map
from moebench.disk import reason
from moebench.errors import RecordError
from moebench.model.noise import GOLDEN, mixed
from moebench.selections import entries_of, path_of, read_entry

SPREAD = 2**31  # numbers that the hash of a sequence takes in a layer


class Place(NamedTuple):
    """Where text is met in a run.

    Attributes:
        part: `train`, or the prefix of what an evaluation measures: `valid`, `heldout`, `tune`.
        step: of training, or after which the evaluation is.
    """

    part: str
    step: int


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
        self,
        tokens: Int[Tensor, "sequences tokens"],
        domain: Int[Tensor, " sequences"] | None,
        place: Place | None = None,
    ) -> Int[Tensor, "layers sequences tokens slots"]:
        """The experts of each token in the first layers, int16.

        Args:
            tokens: the inputs of whole sequences, from their first token on.
            domain: of each sequence, on any device; may be None if the map is not of domains.
            place: plays no part.
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


@dataclass(frozen=True, eq=False)
class Replay:
    """The selections of another run, at each step and evaluation what they were there.

    Attributes:
        run: its directory.
        layers: first ones that are prescribed.
        experts: of a layer.
        steps, every: steps of training, and between evaluations; its files have an entry for each.
    """

    run: Path
    layers: int
    experts: int
    steps: int
    every: int

    def __call__(
        self,
        tokens: Int[Tensor, "sequences tokens"],
        domain: Int[Tensor, " sequences"] | None,
        place: Place,
    ) -> Int[Tensor, "layers sequences tokens slots"]:
        """The experts of each token in the first layers, int32, with -1 in an empty slot.

        Raises RecordError for selections that were damaged since the run began.
        """
        number = entries_of(place.part, self.steps, self.every).index(place.step)
        try:
            found = read_entry(self.run, place.part, number, experts=self.experts)
            if found.shape[1:3] != tokens.shape:
                raise ValueError("is of other text")
        except (OSError, ValueError) as error:
            path = path_of(self.run, place.part)
            raise RecordError(
                f"{path}: cannot be replayed ({reason(error)}); see moebench verify"
            ) from None
        return to_device(torch.from_numpy(found[: self.layers]), tokens.device)


def prescription_of(
    config: ExperimentConfig, corpus: Corpus, device: torch.device
) -> "Prescription | Replay | None":
    """What prescribes the experts of a run; None: its router selects them."""
    if not replays(config):
        return Prescription.on(make_map(config, corpus), device)
    assert config.router.replay is not None, "checked by the config"
    shape = map_layers(config), config.model.num_experts
    return Replay(Path(config.router.replay), *shape, config.train.steps, config.train.eval_every)


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
