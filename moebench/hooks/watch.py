"""The routing of a model as its own experts are told it, by hooks on its modules.

A router's logits do not say which experts are used: correction biases, groups of experts, hash
tables and other gates stand between. So the routing is read where it takes effect: from what each
layer's experts are called with.

    index and weights [tokens, top_k]           nearly all families of transformers 5
    rows, sorted by expert, and their numbers   JetMoe; the router returns the order
    a row per token and expert                  Llama 4; the router returns weights, mostly 0
    rows of two embeddings, looked up alike     Doge
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from moebench.balance import Routing, observe
from moebench.model.gate import gated

GATES: tuple[Literal["softmax", "sigmoid", "sqrt_softplus"], ...] = (
    "softmax",
    "sigmoid",
    "sqrt_softplus",
)
ROUNDING = 1e-4  # relative, of weights in single precision
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their weights are 3-dimensional, too


class RoutingUnknownError(Exception):
    """The experts of a layer are called in a way that does not say which token goes where."""


class Returned(NamedTuple):
    """A tensor that a module returned.

    Attributes:
        module: its name.
        position: of the tensor among the module's outputs.
        rows: the tensor.
    """

    module: str
    position: int
    rows: Tensor


class Gate(NamedTuple):
    """How a layer's distribution over the experts is made.

    Attributes:
        name: of the gate that makes it of the router's logits; None: the router returns the
            distribution itself.
        source: the logits, or the distribution.
        probs: [tokens, experts] the distribution.
    """

    name: Literal["softmax", "sigmoid", "sqrt_softplus"] | None
    source: Returned
    probs: Tensor


@dataclass
class Layer:
    """One call of a layer's experts.

    Attributes:
        name: of the module.
        experts: their number.
        index: [tokens, top_k] the experts of each token.
        weights: [tokens, top_k] of their outputs; an expert of weight 0 is none.
        scores: outputs [tokens, experts] of the layer's router, which may be its logits.
    """

    name: str
    experts: int
    index: Tensor
    weights: Tensor
    scores: list[Returned] = field(default_factory=list)

    def gate(self) -> Gate | None:
        """The gate that gives the weights that the model used, up to a factor; None: none does."""
        eps = torch.finfo(self.weights.dtype).eps
        best, fitting = max(ROUNDING, 8 * eps), None
        for source in self.scores:
            for name in GATES:
                made = gated(name, source.rows.float()[None])
                values = made.values[0].gather(-1, self.index)
                error = _misfit(values, self.weights.float())
                if error < best:
                    best, fitting = error, Gate(name, source, made.probs[0])
        if fitting is not None:
            return fitting
        top_k = self.index.shape[-1]
        given = (source for source in self.scores if _is_distribution(source.rows, top_k))
        return next((Gate(None, source, source.rows.float()) for source in given), None)

    def routing(self, sequences: int) -> Routing:
        """Its routing, on the CPU; sums of what is not known are NaN."""
        gate = self.gate()
        unknown = self.weights.new_full((len(self.index), self.experts), torch.nan)
        logits = unknown if gate is None or gate.name is None else gate.source.rows
        probs = unknown if gate is None else gate.probs
        used = self.weights != 0
        shaped = [
            rows.reshape(sequences, -1, rows.shape[-1]).cpu()
            for rows in (logits.float(), probs, self.index)
        ]
        selected = None if used.all() else used.reshape(shaped[2].shape).cpu()
        return observe(*shaped, selected=selected)


class Watch:
    """Hooks on a model that note each call of its experts during a `with` block.

    Attributes:
        layers: one for each call, in order.

    Raises:
        RoutingUnknownError: out of the forward pass, if experts see a part of the tokens at a time.
    """

    def __init__(self, model: nn.Module, tokens: int) -> None:
        self.layers: list[Layer] = []
        self._tokens = tokens
        self._held = {name: _held(module) for name, module in model.named_modules()}
        self._widths = set(self._held.values())
        self._returned: list[Returned] = []  # since the last call of experts
        self._told: dict[str, Any] = {}  # block -> what its experts were told last
        self._hooks = []
        for name, module in model.named_modules():
            note = partial(self._note_call, name)
            self._hooks += [
                module.register_forward_pre_hook(note, with_kwargs=True),
                module.register_forward_hook(partial(self._note_result, name)),
            ]
        self._ran: set[str] = set()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def missed(self) -> list[str]:
        """Experts that ran and told nothing."""
        known = {layer.name for layer in self.layers}
        ran = (name for name in self._ran if self._held[name])
        return sorted(
            name for name in ran if name.rpartition(".")[2] == "experts" and name not in known
        )

    def _note_result(self, name: str, module: nn.Module, _: Any, result: Any) -> None:
        """Keep what may be a router's scores, or the order in which it sorts rows."""
        self._ran.add(name)
        for position, part in enumerate(outputs(result)):
            if isinstance(part, Tensor) and (part.dim() == 1 or part.shape[-1] in self._widths):
                self._returned.append(Returned(name, position, part))

    def _note_call(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        block = name.rpartition(".")[0]
        given = [*args, *kwargs.values()]
        experts, near = self._held[name], self._near(block)
        if isinstance(module, nn.Embedding):
            layer = self._looked_up(block, module, given)
        elif experts < 2:
            return
        else:
            layer = (
                self._indexed(name, given)
                or self._sorted(block, name, given, near)
                or self._dense(name, given, near)
            )
        if layer is not None:
            flat = [
                part._replace(rows=part.rows.reshape(-1, part.rows.shape[-1]))
                for part in near
                if part.rows.is_floating_point() and part.rows.dim() > 1
            ]
            shape = (self._tokens, layer.experts)
            layer.scores = [part for part in flat if part.rows.shape == shape]
            self.layers.append(layer)
            self._returned.clear()

    def _near(self, block: str) -> list[Returned]:
        """What modules of a block have returned."""
        return [part for part in self._returned if part.module.startswith(f"{block}.")]

    def _indexed(self, name: str, given: Sequence[Any]) -> Layer | None:
        """Experts that are given an index and weights of the same shape."""
        places = index_and_weights(given)
        if places is None:
            return None
        index, weights = (given[place] for place in places)
        flat = index.reshape(-1, index.shape[-1]).long()
        if len(flat) != self._tokens:
            raise RoutingUnknownError(f"{name} sees {len(flat)} of {self._tokens} tokens")
        return Layer(name, self._held[name], flat, weights.reshape(flat.shape))

    def _sorted(
        self, block: str, name: str, given: Sequence[Any], near: Sequence[Returned]
    ) -> Layer | None:
        """Experts that are given rows, sorted by expert, and how many each gets."""
        sizes = next((part for part in given if isinstance(part, list)), None)
        if sizes is None or self._told.get(block) is sizes:
            return None
        self._told[block] = sizes
        rows, experts = sum(sizes), len(sizes)
        flat = [part.rows for part in near if part.rows.shape == (rows,)]
        each_row = torch.arange(rows, device=flat[0].device if flat else None)
        order = [o for o in flat if not o.is_floating_point() and o.sort().values.equal(each_row)]
        gates = [part for part in flat if part.is_floating_point()]
        if not order or not gates or rows % self._tokens:
            return None
        of_row = torch.repeat_interleave(torch.tensor(sizes, device=each_row.device))
        index = torch.empty_like(of_row).index_copy(0, order[0], of_row)
        weights = torch.empty_like(gates[0]).index_copy(0, order[0], gates[0])
        shape = (self._tokens, rows // self._tokens)
        return Layer(name, experts, index.view(shape), weights.view(shape))

    def _dense(self, name: str, given: Sequence[Any], near: Sequence[Returned]) -> Layer | None:
        """Experts that are given a row for each token and expert, scaled by mostly 0."""
        experts = self._held[name]
        rows = [part for part in given if isinstance(part, Tensor) and part.dim() == 2]
        if len(given) != 1 or not rows or len(rows[0]) != experts * self._tokens:
            return None
        shape = (self._tokens, experts)
        for weights in (part.rows for part in near if part.rows.shape == shape):
            top_k = int((weights != 0).sum(-1).max())
            if top_k < experts and (weights >= 0).all():
                largest = weights.topk(top_k, dim=-1)
                return Layer(name, experts, largest.indices, largest.values)
        return None

    def _looked_up(self, block: str, module: nn.Embedding, given: Sequence[Any]) -> Layer | None:
        """Experts of one neuron: the rows of two embeddings that are looked up by one index."""
        index = given[0]
        if index.dim() < 2 or index.shape[:-1].numel() != self._tokens:
            return None
        if self._told.get(block) is not index:
            self._told[block] = index
            return None
        flat = index.reshape(-1, index.shape[-1])
        return Layer(block, module.num_embeddings, flat, torch.ones_like(flat, dtype=torch.float))


def index_and_weights(given: Sequence[Any]) -> tuple[int, int] | None:
    """Where arguments of experts hold an index and weights of the same shape; None: nowhere."""
    tensors = {i: part for i, part in enumerate(given) if isinstance(part, Tensor)}
    rows = {i: part for i, part in tensors.items() if part.dim() > 1}
    for i, index in rows.items():
        if index.is_floating_point() or index.dtype == torch.bool:
            continue
        for j, weights in rows.items():
            if weights.is_floating_point() and weights.shape == index.shape:
                return i, j
    return None


def outputs(result: Any) -> tuple[Any, ...] | list[Any]:
    """What a module returned, as a sequence."""
    return result if isinstance(result, tuple | list) else (result,)


def _held(module: nn.Module) -> int:
    """How many experts a module may hold: the matrices that it stacks, or what it says."""
    if isinstance(module, CONVOLUTIONS):
        return 0
    stacked = [len(weight) for weight in module.parameters(recurse=False) if weight.dim() > 2]
    said = getattr(module, "num_experts", 0)
    return max(stacked, default=said if isinstance(said, int) else 0)


def _misfit(values: Tensor, weights: Tensor) -> float:
    """How far the weights are from a multiple of the values, relatively.

    Each token has a factor of its own where it has several experts, since many models normalise
    over these; with one expert, all tokens share the factor, and weights must vary to say anything.
    """
    if weights.shape[-1] == 1:
        values, weights = values.T, weights.T
        some = weights[0][weights[0] != 0]
        if not len(some) or some.max() - some.min() < ROUNDING * some.abs().max():
            return torch.inf
        values = values.where(weights != 0, 0)
    first, second = (rows / rows.sum(-1, keepdim=True) for rows in (values, weights))
    error = ((first - second).abs() / second.abs().clamp(min=1e-6)).amax()
    return torch.inf if error.isnan() else error.item()


def _is_distribution(rows: Tensor, top_k: int) -> bool:
    """Whether rows are probabilities of more experts than those that are selected."""
    whole = (rows >= 0).all() and (rows.sum(-1) - 1).abs().max() < 1e-2
    return bool(whole and (rows > 0).sum(-1).min() > top_k)
