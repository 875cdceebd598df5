"""Whose selection frequency each token's router probability meets.

A *balance group* is a set of sequences whose expert counts are averaged together. Every scope but
`Shuffled` is a membership matrix over the sequences of a step: `weights @ counts`, normalised. A
scope is about data, so `routing` holds the whole step, in data order, whatever the physical passes
or ranks were; `join` and an all-reduce put it together.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moebench.balance.routing import Routing
from moebench.errors import ConfigError


@dataclass(frozen=True)
class Scope:
    """A rule that gives every sequence of a step the selection frequency of its balance group."""

    def weights(
        self,
        sequences: int,
        *,
        domain: Int[Tensor, " sequences"] | None = None,
    ) -> Float[Tensor, "sequences sequences"]:
        """Row s is 1 where a sequence's counts belong to the group of sequence s, else 0."""
        raise NotImplementedError

    def span(self, sequences: int) -> int:
        """A number of consecutive sequences that splits no balance group of the step."""
        return sequences

    def frequency(
        self,
        routing: Routing,
        *,
        domain: Int[Tensor, " sequences"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "layers sequences experts"]:
        """The f that each sequence meets; rows sum to 1, no gradient.

        Args:
            routing: of the whole step.
            domain: [sequences] the domain of each sequence; only `Domain` asks for it.
            generator: source of randomness; None is torch's global one. Only `Shuffled` draws.

        Returns:
            [layers, sequences, experts] in the dtype of `routing.counts`; integer counts give fp32.

        Raises:
            ConfigError: if a group size does not divide the number of sequences.
        """
        counts = _floating(routing.counts)
        member = self.weights(counts.shape[1], domain=domain).to(counts)
        return _normalise(member @ counts)


@dataclass(frozen=True)
class Global(Scope):
    """Consecutive groups of `size` sequences, or the whole step (None).

    arXiv 2501.11873, Eq. 4-6, for any balance batch size.
    """

    size: int | None = None

    def weights(
        self, sequences: int, *, domain: Int[Tensor, " sequences"] | None = None
    ) -> Float[Tensor, "sequences sequences"]:
        size = _divisor("balance group", self.size, sequences)
        group = torch.arange(sequences) // size
        return (group[:, None] == group).float()

    def span(self, sequences: int) -> int:
        return sequences if self.size is None else self.size


@dataclass(frozen=True)
class Micro(Global):
    """Each logical micro-batch of `size` sequences by itself: arXiv 2501.11873, Eq. 3."""

    size: int = 1


@dataclass(frozen=True)
class Sequence(Global):
    """Each sequence by itself, as DeepSeek-V3, Eq. 17-20, has it."""

    size: int = field(default=1, init=False)


@dataclass(frozen=True)
class Domain(Scope):
    """All sequences of one domain in the step."""

    def weights(
        self, sequences: int, *, domain: Int[Tensor, " sequences"] | None = None
    ) -> Float[Tensor, "sequences sequences"]:
        if domain is None:
            raise ConfigError("scope=domain: needs the domain of each sequence; pass domain=")
        return (domain[:, None] == domain).float()


@dataclass(frozen=True)
class Shuffled(Scope):
    """As many tokens as a micro-batch holds, drawn from everywhere in the pool.

    For each logical micro-batch of `size` sequences an independent draw, without replacement and
    shared by the layers, of as many token positions from its pool of `pool` consecutive sequences
    (None: the whole step). Each micro-batch keeps its own router probabilities. The token number of
    `Micro` with the distribution of `Global`: arXiv 2501.11873, section 5.
    """

    size: int
    pool: int | None = None

    def frequency(
        self,
        routing: Routing,
        *,
        domain: Int[Tensor, " sequences"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "layers sequences experts"]:
        layers, sequences, tokens, top_k = routing.expert_index.shape
        pool = _divisor("pool", self.pool, sequences)
        size = _divisor("micro-batch", self.size, pool)
        device = generator.device if generator is not None else torch.device("cpu")
        drawn = torch.stack(
            [
                start // pool * pool * tokens
                + torch.randperm(pool * tokens, generator=generator, device=device)[: size * tokens]
                for start in range(0, sequences, size)
            ]
        ).to(routing.expert_index.device)  # [micro-batches, size * tokens]
        selected = routing.expert_index.reshape(layers, sequences * tokens, top_k)
        selected = selected[:, drawn].reshape(layers, len(drawn), -1)
        counts = _floating(routing.counts)
        drawn_counts = counts.new_zeros(layers, len(drawn), counts.shape[-1])
        drawn_counts = drawn_counts.scatter_add(
            2, selected, counts.new_ones(1).expand(selected.shape)
        )
        return _normalise(drawn_counts).repeat_interleave(size, dim=1, output_size=sequences)


def make_scope(name: str, *, micro_bsz: int, balance_bsz: int | None = None) -> Scope | None:
    """The scope that a config names; None for `none`.

    Args:
        name: `none`, `sequence`, `micro`, `shuffled`, `global` or `domain`.
        micro_bsz: sequences in a logical micro-batch.
        balance_bsz: sequences whose counts are averaged (the pool, for `shuffled`); None takes the
            scope's own.

    Raises:
        ConfigError: for a name that is none of these, or a `balance_bsz` that contradicts it.
    """
    own = {"none": None, "sequence": 1, "micro": micro_bsz, "domain": None}
    if name in own and balance_bsz not in (None, own[name]):
        raise ConfigError(
            f"balance_bsz={balance_bsz}: contradicts scope={name}; use scope=global with it"
        )
    match name:
        case "none":
            return None
        case "sequence":
            return Sequence()
        case "micro":
            return Micro(micro_bsz)
        case "shuffled":
            return Shuffled(micro_bsz, balance_bsz)
        case "global":
            return Global(balance_bsz)
        case "domain":
            return Domain()
    raise ConfigError(
        f"scope={name}: must be one of none, sequence, micro, shuffled, global, domain"
    )


def _floating(counts: Tensor) -> Tensor:
    counts = counts.detach()
    return counts if counts.is_floating_point() else counts.float()


def _normalise(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True)


def _divisor(what: str, size: int | None, sequences: int) -> int:
    if size is None:
        return sequences
    if size < 1 or sequences % size:
        raise ConfigError(f"a {what} of {size} sequences: must divide the {sequences} there are")
    return size
