"""Whose selection frequency each token's router probability meets.

A *balance group* is a set of sequences whose expert counts are summed together. A scope assigns the
sequences of a step to groups, in data order, whatever the physical passes or ranks are. What a part
of the step adds to each group is its tally: whole numbers, so that the tallies of passes and ranks
add up exactly in any order, and f is their sum, normalised.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moebench.balance.routing import Routing
from moebench.errors import ConfigError
from moebench.scopes import declared, default_size

Domains = Int[Tensor, " sequences"] | None  # the domain of each sequence
Labels = tuple[Int[Tensor, " sequences"], int]  # the group of each sequence, how many groups
Device = torch.device | None


class Groups(NamedTuple):
    """A scope applied to the sequences of one step.

    Attributes:
        row: [sequences] the row of the tally that each sequence adds to and meets.
        group: [rows] the balance group of each row. There is a row a group, or, for a prefix over
            logical passes, a row for each pass that a group has sequences in.
        num_groups: how many groups, whether they have sequences in this step or not.
        first: [rows] the first row of the same group, where f is a prefix; else None.
        drawn: [rows, draws] token positions of the step that are counted for each row in place of
            its own sequences, -1 for none; None unless the scope draws.
    """

    row: Int[Tensor, " sequences"]
    group: Int[Tensor, " rows"]
    num_groups: int
    first: Int[Tensor, " rows"] | None = None
    drawn: Int[Tensor, "rows draws"] | None = None

    def tally(self, routing: Routing, start: int = 0) -> Tensor:
        """[layers, rows, experts] what some consecutive sequences add, without gradient.

        Args:
            routing: of these sequences.
            start: the number of the first of them in the step.
        """
        counts = routing.counts.detach()
        layers, sequences, experts = counts.shape
        empty = counts.new_zeros(layers, len(self.group), experts)
        if self.drawn is None:
            return empty.index_add(1, self.row[start : start + sequences], counts)
        tokens = routing.expert_index.shape[2]
        place = self.drawn - start * tokens
        inside = (place >= 0) & (place < sequences * tokens)
        place = place.clamp(0, sequences * tokens - 1)
        selected = routing.expert_index.flatten(1, 2)[:, place].flatten(2)  # [layers, rows, ...]
        ones = inside.repeat_interleave(routing.expert_index.shape[3], dim=1) & (selected >= 0)
        return empty.scatter_add(2, selected.clamp(min=0), ones.to(counts.dtype))

    def frequency(
        self, tally: Tensor, past: Tensor | None = None
    ) -> Float[Tensor, "layers sequences experts"]:
        """The f that each sequence meets; rows sum to 1.

        Args:
            tally: [layers, rows, experts], complete for the rows whose sequences are asked for.
            past: [layers, groups, experts] counts of earlier steps to add.

        Returns:
            [layers, sequences, experts] in the dtype of `tally`; whole numbers give fp32.
        """
        if self.first is not None:
            running = F.pad(tally.cumsum(1), (0, 0, 1, 0))
            tally = running[:, 1:] - running[:, self.first]
        if past is not None:
            tally = tally + past[:, self.group]
        return normalise(tally)[:, self.row]

    def by_group(self, tally: Tensor) -> Tensor:
        """[layers, groups, experts] the tally of a whole step, summed over each group's rows."""
        empty = tally.new_zeros(tally.shape[0], self.num_groups, tally.shape[2])
        return empty.index_add(1, self.group, tally)


@dataclass(frozen=True)
class Scope:
    """A rule that gives every sequence of a step the selection frequency of its balance group."""

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

    def members(
        self,
        sequences: int,
        *,
        domain: Domains = None,
        pass_bsz: int | None = None,
    ) -> Bool[Tensor, "sequences sequences"]:
        """Row s is True at the sequences that may be counted in the f of sequence s.

        Args:
            domain: [sequences] the domain of each; only `Domain` asks for it.
            pass_bsz: only the logical passes of so many sequences up to that of s count.
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
        """The scope as a row-stochastic matrix: where sequences have equally many tokens, f is
        `weights @ counts`, normalised (for `Shuffled`, the mean of f over its draws)."""
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
            sequences, tokens: of the whole step, and of a sequence.
            domain: [sequences] the domain of each; only `Domain` asks for it.
            generator: source of randomness; None is torch's global one. Only `Shuffled` draws.
            pass_bsz: makes f a prefix over logical passes of so many sequences (arXiv 2501.11873,
                Algorithm 1); None: f is that of the whole group.
            mask: False where a token is padding; only `Shuffled` looks at it.
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
        # on the CPU, since a GPU would be waited for
        key = label.cpu() * passes + torch.arange(sequences) // pass_bsz
        keys, row = key.unique(return_inverse=True)
        group = keys // passes
        first = torch.searchsorted(group, group)
        row, group, first = (_moved(each, device) for each in (row, group, first))
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
            domain, generator: as in `groups`.

        Returns:
            [layers, sequences, experts] in the dtype of `routing.counts`; integer counts give fp32.

        Raises:
            ConfigError: as `groups` does, and for counts that cannot be. On a GPU, in
                `torch.compile` and in a transform of `torch.func` their values are not looked at,
                since that would wait for them.
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
    """Each sequence by itself, as DeepSeek-V3, Eq. 17-20, has it."""

    size: int = field(default=1, init=False)


@dataclass(frozen=True)
class Domain(Scope):
    """All sequences of one domain in the step.

    Attributes:
        num_domains: domains are numbered below it, and each keeps its group from step to step;
            None: the groups of a step are those of its own domains.
    """

    num_domains: int | None = None

    def labels(self, sequences: int, domain: Domains = None, device: Device = None) -> Labels:
        if domain is None:
            raise ConfigError("domain=None: Domain needs the domain of each sequence")
        if domain.shape != (sequences,):
            raise ConfigError(
                f"domain of shape {tuple(domain.shape)}: must be [sequences], here ({sequences},)"
            )
        domain = _moved(domain, device)
        if self.num_domains is not None:
            return domain, self.num_domains
        # the first sequence of a domain stands for it: no domain need be counted, which would wait
        return (domain[:, None] == domain).int().argmax(1), sequences


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
            if pass_bsz is not None:  # only the passes up to its own have been seen
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
            drawn=_moved(torch.stack(drawn), device),
        )


def make_scope(
    name: str,
    *,
    micro_bsz: int,
    balance_bsz: int | None = None,
    num_domains: int | None = None,
) -> Scope | None:
    """The scope of a name that `moebench.scopes` declares; None for `none`.

    Args:
        name: `none`, `sequence`, `micro`, `shuffled`, `global`, `domain` or that of a plugin.
        micro_bsz: sequences in a logical micro-batch.
        balance_bsz: sequences whose counts are summed (for `shuffled`, the pool); None takes the
            default of the scope.
        num_domains: how many domains there are, for scopes that need them.

    Raises:
        ConfigError: for a name that is not declared, or a `balance_bsz` that the scope cannot have.
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
    return scope.load()(**{each: given[value] for each, value in scope.fields.items()})


def normalise(counts: Tensor) -> Tensor:
    """Counts as shares of their sum; whole numbers give fp32."""
    counts = counts if counts.is_floating_point() else counts.float()
    return counts / counts.sum(-1, keepdim=True)


def _real_first(place: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
    """The positions with those that are no padding first, and -1 after the `wanted` first ones."""
    place = place[real[place].logical_not().int().argsort(stable=True)]
    return place.where(torch.arange(len(place), device=place.device) < wanted, -1)


def _moved(numbers: Tensor, device: torch.device | None) -> Tensor:
    """The same on a device; a copy to a GPU waits for nothing."""
    if device is None or device.type != "cuda" or numbers.is_cuda:
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


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


def _can_look(values: Tensor) -> bool:
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # there is none but within a transform of torch.func
    return torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore


def _refuse_bad_values(counts: Tensor) -> None:
    if not _can_look(counts):
        return
    if counts.is_floating_point() and not counts.isfinite().all():
        raise ConfigError("counts that are not finite: must be numbers of assignments, 0 or more")
    if (counts < 0).any():
        raise ConfigError(
            f"counts as low as {counts.min():g}: must be numbers of assignments, 0 or more"
        )


def _refuse_empty(met: Tensor) -> None:
    if _can_look(met) and not (total := met.sum(-1) > 0).all():
        layer, sequence = total.logical_not().nonzero()[0].tolist()
        raise ConfigError(
            f"the balance group of sequence {sequence} in layer {layer} has no tokens: must have "
            "at least one that is no padding"
        )
