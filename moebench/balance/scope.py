"""Scopes: which sequences share an f, the selection frequency in their balance loss.

A *balance group* is a set of sequences whose expert counts are summed together. A scope assigns the
sequences of a step to groups in data order. The assignment does not depend on physical passes or
ranks. `Groups` is a scope applied to one step: it counts, and gives each sequence its f.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.balance.devices import can_look, to_device
from moebench.balance.groups import Groups
from moebench.balance.routing import Routing
from moebench.errors import ConfigError
from moebench.scopes import declared, default_size

Domains = Int[Tensor, " sequences"] | None  # the domain of each sequence
Labels = tuple[Int[Tensor, " sequences"], int]  # the group of each sequence, how many groups
Device = torch.device | None


@dataclass(frozen=True)
class Scope:
    """A rule that divides the sequences of a step into balance groups."""

    def labels(self, sequences: int, domain: Domains = None, device: Device = None) -> Labels:
        """The group (for `Shuffled`, the pool) of each sequence of a step, and how many there are.

        Args:
            sequences: of the whole step.
            domain: [sequences] the domain of each; only `Domain` needs it.
            device: of the result.

        Returns:
            [sequences] group numbers below the number of groups, and that number.
        """
        raise NotImplementedError

    @property
    def steady(self) -> bool:
        """Whether the groups are the same in every step of as many sequences."""
        return type(self).labels is Global.labels and type(self).groups is Scope.groups

    def members(
        self,
        sequences: int,
        *,
        domain: Domains = None,
        pass_bsz: int | None = None,
    ) -> Bool[Tensor, "sequences sequences"]:
        """Row s is True at the sequences that may be counted in the f of sequence s.

        Args:
            domain: [sequences] the domain of each; only `Domain` needs it.
            pass_bsz: sequences in a logical pass; the passes after that of s are not counted.
        """
        label, _ = self.labels(sequences, domain=domain)
        same = label[:, None] == label
        if pass_bsz is None:
            return same
        number = torch.arange(sequences, device=label.device) // pass_bsz
        return same & (number <= number[:, None])

    def weights(
        self, sequences: int, *, domain: Domains = None
    ) -> Float[Tensor, "sequences sequences"]:
        """The scope as a row-stochastic matrix.

        If all sequences have equally many tokens, f is `weights @ counts`, normalised. For
        `Shuffled` that is the mean of f over its draws.
        """
        member = self.members(sequences, domain=domain).float()
        return member / member.sum(1, keepdim=True)

    def groups(
        self,
        sequences: int,
        tokens: int,
        *,
        domain: Domains = None,
        generator: torch.Generator | None = None,
        pass_bsz: int | None = None,
        mask: Bool[Tensor, "sequences tokens"] | None = None,
        device: Device = None,
    ) -> Groups:
        """The scope applied to one step.

        Args:
            sequences: of the whole step.
            tokens: of a sequence.
            domain: [sequences] the domain of each; only `Domain` needs it.
            generator: source of randomness; None is torch's global one. Only `Shuffled` draws.
            pass_bsz: f becomes a prefix over logical passes of this many sequences (arXiv
                2501.11873, Algorithm 1); None: f is that of the whole group.
            mask: False where a token is padding; only `Shuffled` needs it.
            device: of the result.

        Raises:
            ConfigError: for a group size that does not divide the number of sequences, and a
                domain scope without domains.
        """
        if pass_bsz is None:
            label, number = self.labels(sequences, domain=domain, device=device)
            return Groups(label, torch.arange(number, device=label.device), number)
        label, number = self.labels(sequences, domain=domain)
        passes = sequences // _divisor("logical pass", pass_bsz, sequences)
        # on the CPU: on a GPU, unique() would wait for the device
        key = label.cpu() * passes + torch.arange(sequences) // pass_bsz
        keys, row = key.unique(return_inverse=True)
        group = keys // passes
        first = torch.searchsorted(group, group)
        row, group, first = (to_device(numbers, device) for numbers in (row, group, first))
        return Groups(row, group, number, first=first)

    def frequency(
        self,
        routing: Routing,
        *,
        domain: Domains = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "layers sequences experts"]:
        """The f that each sequence of a whole step meets; rows sum to 1, no gradient.

        Args:
            routing: of the whole step.
            domain: [sequences] the domain of each; only `Domain` needs it.
            generator: source of randomness, as in `groups`.

        Returns:
            [layers, sequences, experts] in the dtype of `routing.counts`; integer counts give fp32.

        Raises:
            ConfigError: as `groups` does, and for impossible counts. Their values are not checked
                on a GPU, in `torch.compile` or in a transform of `torch.func`, since the check
                would wait for the device.
        """
        _refuse_bad_shapes(routing)
        _, sequences, tokens, _ = routing.expert_index.shape
        groups = self.groups(
            sequences,
            tokens,
            domain=domain,
            generator=generator,
            mask=None if routing.tokens is None else routing.expert_index[0, :, :, 0] >= 0,
            device=routing.counts.device,
        )
        _refuse_bad_values(routing.counts)
        tally = groups.tally(routing)
        _refuse_empty(tally[:, groups.row])
        return groups.frequency(tally)


@dataclass(frozen=True)
class Global(Scope):
    """Consecutive groups of `size` sequences, or the whole step (None).

    arXiv 2501.11873, Eq. 4-6, for any balance batch size.
    """

    size: int | None = None

    def labels(self, sequences: int, domain: Domains = None, device: Device = None) -> Labels:
        size = _divisor("balance group", self.size, sequences)
        return torch.arange(sequences, device=device) // size, sequences // size


@dataclass(frozen=True)
class Micro(Global):
    """Each logical micro-batch of `size` sequences by itself: arXiv 2501.11873, Eq. 3."""

    size: int = 1


@dataclass(frozen=True)
class Sequence(Global):
    """Each sequence by itself: DeepSeek-V3, Eq. 17-20."""

    size: int = field(default=1, init=False)


@dataclass(frozen=True)
class Domain(Scope):
    """All sequences of one domain in the step.

    Attributes:
        num_domains: the number of domains. Each is a group, the same one in every step. None: the
            groups are the domains that occur in the step.
    """

    num_domains: int | None = None

    def labels(self, sequences: int, domain: Domains = None, device: Device = None) -> Labels:
        if domain is None:
            raise ConfigError("domain=None: Domain needs the domain of each sequence")
        if domain.shape != (sequences,):
            raise ConfigError(
                f"domain of shape {tuple(domain.shape)}: must be [sequences], here ({sequences},)"
            )
        domain = to_device(domain, device)
        if self.num_domains is not None:
            return domain, self.num_domains
        # A group is numbered by its first sequence: to count the domains would wait for a GPU.
        return (domain[:, None] == domain).int().argmax(1), sequences


@dataclass(frozen=True)
class Shuffled(Scope):
    """As many tokens as a micro-batch holds, drawn from everywhere in the pool.

    Each logical micro-batch of `size` sequences draws as many token positions as it has, without
    replacement, from its pool of `pool` consecutive sequences (None: the whole step). Draws are
    independent, and all layers share them. Each micro-batch keeps its own router probabilities. f
    has the number of tokens of `Micro` and the distribution of `Global`: arXiv 2501.11873,
    section 5.
    """

    size: int
    pool: int | None = None

    def labels(self, sequences: int, domain: Domains = None, device: Device = None) -> Labels:
        pool = _divisor("pool", self.pool, sequences)
        return torch.arange(sequences, device=device) // pool, sequences // pool

    def groups(
        self,
        sequences: int,
        tokens: int,
        *,
        domain: Domains = None,
        generator: torch.Generator | None = None,
        pass_bsz: int | None = None,
        mask: Bool[Tensor, "sequences tokens"] | None = None,
        device: Device = None,
    ) -> Groups:
        pool = _divisor("pool", self.pool, sequences)
        size = _divisor("micro-batch", self.size, pool)
        if pass_bsz is not None and _divisor("logical pass", pass_bsz, sequences) % size:
            raise ConfigError(
                f"a logical pass of {pass_bsz} sequences: must hold whole micro-batches of {size} "
                "to draw from"
            )
        source = generator.device if generator is not None else torch.device("cpu")
        drawn = []
        for start in range(0, sequences, size):
            begin = start // pool * pool
            end = begin + pool
            if pass_bsz is not None:  # later passes have not run yet
                end = min(end, start // pass_bsz * pass_bsz + pass_bsz)
            order = torch.randperm((end - begin) * tokens, generator=generator, device=source)
            place = begin * tokens + order
            if mask is not None:
                place = _real_first(place, mask.flatten(), mask[start : start + size].sum())
            drawn.append(place[: size * tokens])
        rows = sequences // size
        return Groups(
            row=torch.arange(sequences, device=device) // size,
            group=torch.arange(rows, device=device),
            num_groups=rows,
            drawn=to_device(torch.stack(drawn), device),
        )


def make_scope(
    name: str,
    *,
    micro_bsz: int,
    balance_bsz: int | None = None,
    num_domains: int | None = None,
) -> Scope | None:
    """Make the scope that `moebench.scopes` declares under a name; None for `none`.

    Args:
        name: `none`, `sequence`, `micro`, `shuffled`, `global`, `domain` or that of a plugin.
        micro_bsz: sequences in a logical micro-batch.
        balance_bsz: sequences whose counts are summed (for `shuffled`, the pool); None takes the
            default of the scope.
        num_domains: the number of domains, for scopes that need it.

    Raises:
        ConfigError: for an undeclared name, a `balance_bsz` that the scope does not allow, or a
            class that is not a Scope.
    """
    scope = declared(name)
    sizes = {"micro_bsz": micro_bsz, "global_bsz": None}
    only = default_size(name, sizes)
    if (scope.fixed or scope.size is None) and balance_bsz not in (None, only):
        raise ConfigError(
            f"balance_bsz={balance_bsz}: the groups of the scope {name} have "
            f"{f'{only} sequences' if only else 'no fixed size'}; leave it out"
        )
    given = {"micro_bsz": micro_bsz, "balance_bsz": balance_bsz, "num_domains": num_domains}
    if scope.target is None:
        return None
    made = scope.load()(**{name: given[value] for name, value in scope.fields.items()})
    if not isinstance(made, Scope):
        raise ConfigError(
            f"scope={name}: {type(made).__name__} is not a moebench.balance.Scope; subclass it"
        )
    return made


def _real_first(place: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
    """The positions, padding last; all after the first `wanted` are -1."""
    place = place[real[place].logical_not().int().argsort(stable=True)]
    return place.where(torch.arange(len(place), device=place.device) < wanted, -1)


def _divisor(what: str, size: int | None, sequences: int) -> int:
    if size is None:
        return sequences
    if size < 1 or sequences % size:
        raise ConfigError(f"a {what} of {size} sequences: must divide the {sequences} there are")
    return size


def _refuse_bad_shapes(routing: Routing) -> None:
    counts, index = routing.counts, routing.expert_index
    if counts.ndim != 3 or index.ndim != 4 or counts.shape[:2] != index.shape[:2]:
        raise ConfigError(
            f"counts of shape {tuple(counts.shape)} beside expert_index of {tuple(index.shape)}: "
            "must be [layers, sequences, experts] beside [layers, sequences, tokens, top_k]"
        )


def _refuse_bad_values(counts: Tensor) -> None:
    if not can_look(counts):
        return
    if counts.is_floating_point() and not counts.isfinite().all():
        raise ConfigError("counts that are not finite: must be numbers of assignments, 0 or more")
    if (counts < 0).any():
        raise ConfigError(
            f"counts as low as {counts.min():g}: must be numbers of assignments, 0 or more"
        )


def _refuse_empty(met: Tensor) -> None:
    if can_look(met) and not (total := met.sum(-1) > 0).all():
        layer, sequence = total.logical_not().nonzero()[0].tolist()
        raise ConfigError(
            f"the balance group of sequence {sequence} in layer {layer} has no tokens: must have "
            "at least one that is not padding"
        )
