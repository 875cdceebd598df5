"""A balance loss over the tokens of a whole step, for the training loop that you have.

    balancer = Balancer(model, Global(), weight=0.01)
    for batches in steps:  # the batches of one optimizer step
        balancer.begin(batches)
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
        optimizer.step()

The loop stays as it is: no loss is returned and none is added. In each backward pass, hooks add the
gradient of the balance loss to the routers' scores. That gradient has a size of its own, so it does
not matter how the loop scales its loss: by accumulation steps, by tokens or by ranks.

For layer l of L, scores z of tokens t, f from the scope, T tokens in the step on all ranks:

    loss = weight / L * sum over l of E / T * sum over t of <f_t, p(z_t)>      (moebench.balance)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moebench.balance import Global, Groups, Routing, Scope, balance_loss, observe
from moebench.errors import ConfigError
from moebench.hooks.across import Across
from moebench.hooks.passes import Batch, call, mask_of, of_counts, pass_bsz, quietly, within_passes
from moebench.hooks.watch import Gate, Watch, index_and_weights, outputs
from moebench.model.gate import gated

OWN_LOSS = ("router_aux_loss_coef", "aux_loss_coef")  # weights of a model's own balance loss
REMEDY = "use moebench.balance on its router logits (docs/balance.md)"


class GradScaler(Protocol):
    """What multiplies a loss in half precision, such as `torch.amp.GradScaler`."""

    def get_scale(self) -> float: ...


class Router(NamedTuple):
    """Where the scores of one layer's experts come from.

    Attributes:
        gate: makes the distribution of the scores; None: the scores are the distribution.
        module, position: the scores are this output of this module.
    """

    gate: Literal["softmax", "sigmoid", "sqrt_softplus"] | None
    module: str
    position: int

    def observe(self, scores: Tensor, index: Tensor | None, top_k: int, mask: Tensor) -> Routing:
        """The routing of one layer, of scores [sequences * tokens, experts]."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        scores = scores.view(*mask.shape, -1).to(wide)
        probs = scores if self.gate is None else gated(self.gate, scores).probs
        index = None if index is None else index.view(*mask.shape, -1)
        return observe(scores, probs, index, top_k=top_k, mask=mask)


@dataclass
class Step:
    """One optimizer step on one rank.

    Attributes:
        masks: [sequences, tokens] of each of the rank's passes; False where a token is padding.
        starts: the position of each pass's first sequence among the sequences of all ranks.
        total: tokens of all passes and ranks that are no padding.
        groups: the scope applied to the sequences of all ranks.
        frequency: (pass, layer) -> [1, sequences, experts] what is known of f.
        tally: layer -> [1, rows, experts] the counts of all passes so far and all ranks.
        seen: (pass, layer) -> its counts, [1, sequences, experts], and its loss.
        begun: how many passes have begun.
        current: the pass that runs, forward or, where layers are recomputed, backward.
    """

    masks: list[Tensor]
    starts: list[int]
    total: int
    groups: Groups
    frequency: dict[tuple[int, str], Tensor]
    tally: dict[str, Tensor]
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]]
    begun: int = 0
    current: int = -1

    def part(self, frequency: Tensor, number: int) -> Tensor:
        """The f of a pass's sequences."""
        start = self.starts[number]
        return frequency[:, start : start + len(self.masks[number])]


class Balancer:
    """Hooks on a model that balance its routers, in place of the model's own balance loss.

    Attributes:
        model: as it was given.
        scope: whose f each sequence meets.
        weight: of the loss.

    Raises:
        ConfigError: where it is made, for an estimator that is none; in `begin`, if the model does
            not say what its routers do, if ranks differ in the number of their passes, or if the
            scope does not fit the step; in a forward pass that `begin` did not announce.
    """

    def __init__(
        self,
        model: nn.Module,
        scope: Scope | None = None,
        *,
        weight: float,
        estimator: Literal["exact", "buffer"] = "exact",
        layers: Literal["mean", "sum"] = "mean",
        counts: Literal["scores", "selected"] = "scores",
        averaged: bool = True,
        group: dist.ProcessGroup | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        """Put hooks on a model and take the weight from its own balance loss.

        Args:
            model: a Hugging Face model, or any that calls its experts with an index and weights
                [tokens, top_k]; it may be wrapped (DDP).
            scope: of `moebench.balance`; None: `Global()`, all tokens of the step.
            weight: of the loss.
            estimator: `exact` counts the step beforehand, by a forward pass without gradient, if a
                group spans several passes or ranks; `buffer` lets f be what was counted in the
                step so far (arXiv 2501.11873, Algorithm 1).
            layers: `mean`, or `sum` as in Megatron-LM.
            counts: f counts the experts that the scores alone would select (DeepSeek-V3, Eq. 18),
                or those that were `selected` under a bias or groups of experts.
            averaged: the gradients of ranks are averaged later (DDP, FSDP) and not summed.
            group: the data-parallel ranks; None: all, if `torch.distributed` runs.
            scaler: what multiplies the loss in fp16.
        """
        if estimator not in ("exact", "buffer"):
            raise ConfigError(f"estimator={estimator!r}: must be 'exact' or 'buffer'")
        self.model, self.scope, self.weight = model, scope or Global(), weight
        self._estimator, self._layers, self._counts = estimator, layers, counts
        self._ranks = Across(group, averaged)
        self.scaler = scaler
        self._routers: dict[str, Router] = {}  # experts' module -> where its scores come from
        self._scores: dict[tuple[str, int], Tensor] = {}  # of the pass that runs
        self._step: Step | None = None
        self._counting = False
        self._hooks: list[Any] = []
        self._in_pass = False  # whether each group lies within one pass
        self._own_loss = _without_own_loss(model)

    def remove(self) -> None:
        """Take the hooks away, and give the model's own balance loss its weight again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._routers.clear()
        for owner, name, value in self._own_loss:
            setattr(owner, name, value)
        self._own_loss.clear()
        self._step = None

    def begin(self, batches: Sequence[Batch], domain: Tensor | None = None) -> None:
        """Announce the batches of one optimizer step, in the order in which they will run.

        Args:
            batches: of this rank: keyword arguments of the model each, or its only argument. A
                two-dimensional `attention_mask` says which tokens are padding.
            domain: [sequences] of all ranks, pass by pass, for `Domain`.
        """
        if not batches:
            raise ConfigError("a step of no batches: must have at least one")
        if not self._hooks:
            self._put_hooks(batches[0])
        masks = [mask_of(batch) for batch in batches]
        starts, passes, total = self._ranks.layout(masks)
        groups = self.scope.groups(
            int(passes.sum()),
            masks[0].shape[1],
            domain=domain,
            pass_bsz=pass_bsz(passes) if self._estimator == "buffer" else None,
            device=masks[0].device,
        )
        if groups.drawn is not None:
            raise ConfigError(f"scope={self.scope}: draws tokens of other ranks; use Global()")
        self._step = Step(masks, starts, total, groups, {}, {}, {})
        whole = within_passes(groups, passes)
        if self._estimator == "exact" and not whole:
            self._count(batches)
        self._in_pass = whole

    def loss(self) -> float:
        """The balance loss of the last step, unscaled, of all ranks; 1 where routing is uniform."""
        step = self._begun()
        parts = [loss for _, loss in step.seen.values()]
        total = self._ranks.summed(torch.stack(parts).sum()).item()
        return total / len(self._routers) if self._layers == "mean" else total

    def counts(self) -> Tensor:
        """[layers, experts] assignments of the last step, of all ranks.

        They are those that f counts; `moebench.metrics.load` makes measures of them.
        """
        seen = self._begun().seen
        of_layer = [
            sum(counts.sum((0, 1)) for (_, name), (counts, _) in seen.items() if name == layer)
            for layer in self._routers
        ]
        return self._ranks.summed(torch.stack(of_layer))  # pyright: ignore[reportArgumentType]

    def _begun(self) -> Step:
        if self._step is None:
            raise ConfigError("no step: call Balancer.begin(batches) before a step's first pass")
        return self._step

    def _put_hooks(self, batch: Batch) -> None:
        """Find the routers by one forward pass, and hook them."""
        self._own_loss = self._own_loss or _without_own_loss(self.model)
        routers: dict[str, Router] = {}
        with quietly(mask_of(batch).device):
            with Watch(self.model, mask_of(batch).numel()) as watch:
                call(self.model, batch)
            if not watch.layers or watch.missed():
                who = (watch.missed() or [type(self.model).__name__])[0]
                raise ConfigError(f"{who}: does not say which tokens its experts get; {REMEDY}")
            for layer in watch.layers:
                gate = layer.gate()
                if gate is None or layer.name in routers:
                    why = "has weights of no known gate" if gate is None else "runs twice a pass"
                    raise ConfigError(f"{layer.name}: {why}; {REMEDY}")
                routers[layer.name] = _router(gate)
        self._routers = routers
        modules = dict(self.model.named_modules())
        for experts, router in self._routers.items():
            keep = partial(self._keep_scores, router)
            add = partial(self._add_gradient, experts)
            self._hooks += [
                modules[router.module].register_forward_hook(keep),
                modules[experts].register_forward_pre_hook(add, with_kwargs=True),
            ]
        self._hooks += [
            self.model.register_forward_pre_hook(self._start_pass),
            self.model.register_forward_hook(self._end_pass),
        ]

    def _count(self, batches: Sequence[Batch]) -> None:
        """Count the step by a forward pass, with the random numbers that training will draw."""
        step, parts = self._begun(), []
        self._counting = True
        try:
            with quietly(step.masks[0].device):
                for number, batch in enumerate(batches):
                    step.current = number
                    call(self.model, batch)
                    seen = [step.seen[number, layer][0] for layer in self._routers]
                    parts.append(step.groups.tally(of_counts(seen), step.starts[number]))
        finally:
            self._counting = False
        step.current = -1
        tally = self._ranks.summed(torch.stack(parts).sum(0))
        frequency = step.groups.frequency(tally)
        for number in range(len(batches)):
            part = step.part(frequency, number)
            for i, layer in enumerate(self._routers):
                step.frequency[number, layer] = part[i : i + 1]

    def _start_pass(self, *_: object) -> None:
        if not torch.is_grad_enabled() or self._counting:
            return
        step = self._begun()
        step.current, step.begun = step.begun, step.begun + 1
        if step.begun > len(step.masks):
            raise ConfigError(
                f"pass {step.begun} of a step of {len(step.masks)}: call "
                "Balancer.begin(batches) with all batches of a step before its first"
            )

    def _end_pass(self, _: nn.Module, __: Any, result: Any) -> None:
        """Let the backward of the pass say when it begins, for layers that are recomputed then."""
        step = self._step
        if step is None or self._counting or not torch.is_grad_enabled():
            return

        def go_back(_: Tensor, number: int = step.current) -> None:
            step.current = number

        for part in result.values() if isinstance(result, Mapping) else outputs(result):
            if isinstance(part, Tensor) and part.requires_grad:
                part.register_hook(go_back)

    def _keep_scores(self, router: Router, module: nn.Module, _: Any, result: Any) -> None:
        if self._counting or torch.is_grad_enabled():
            self._scores[router.module, router.position] = outputs(result)[router.position]

    def _add_gradient(
        self, layer: str, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Count a layer's routing, and let its weights carry the loss's gradient to the scores."""
        if self._step is None or not (self._counting or torch.is_grad_enabled()):
            return None
        step, router = self._step, self._routers[layer]
        given = [*args, *kwargs.values()]
        places = index_and_weights(given)
        assert places is not None, f"{layer}: called otherwise than in its first pass"
        index, weights = (given[place] for place in places)
        scores, mask = self._scores.pop((router.module, router.position)), step.masks[step.current]
        told = index.long() if self._counts == "selected" else None
        see = partial(router.observe, index=told, top_k=index.shape[-1], mask=mask)
        with torch.no_grad():
            routing = see(scores.detach())
            if self._counting:
                step.seen[step.current, layer] = routing.counts, routing.prob_mass.sum() * 0
                return None
            frequency = self._frequency(layer, routing)
            part = balance_loss(frequency, routing.prob_mass, total=step.total)
        step.seen[step.current, layer] = routing.counts, part
        factor = self.weight / (len(self._routers) if self._layers == "mean" else 1)
        factor *= self._ranks.factor * (1 if self.scaler is None else self.scaler.get_scale())

        def penalty(scores: Tensor) -> Tensor:
            return factor * balance_loss(frequency, see(scores).prob_mass, total=step.total)

        given[places[1]] = _Added.apply(weights, scores, penalty)
        return tuple(given[: len(args)]), dict(zip(kwargs, given[len(args) :], strict=True))

    def _frequency(self, layer: str, routing: Routing) -> Tensor:
        """[1, sequences, experts] the f of the pass that runs; the same if it is recomputed."""
        step, key = self._begun(), (self._begun().current, layer)
        if key not in step.frequency:
            tally = step.groups.tally(routing, step.starts[step.current])
            if not self._in_pass:
                tally = self._ranks.summed(tally)
                tally = step.tally[layer] = step.tally.get(layer, 0) + tally
            step.frequency[key] = step.part(step.groups.frequency(tally), step.current)
        return step.frequency[key]


class _Added(torch.autograd.Function):
    """The weights as they are; backward, the scores get the gradient of a penalty on them."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, scores: Tensor, penalty: Any) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.penalty = penalty
        return weights.view_as(weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        (scores,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            (added,) = torch.autograd.grad(ctx.penalty(leaf), leaf)
        return grad, added, None


def _without_own_loss(model: nn.Module) -> list[tuple[Any, str, float]]:
    """Give the model's own balance loss the weight 0; returns where it was, and how large."""
    owners = [owner for module in model.modules() for owner in (module, _config(module))]
    found: list[tuple[Any, str, float]] = []
    for owner in {id(owner): owner for owner in owners}.values():
        for name in OWN_LOSS:
            value = getattr(owner, name, None)
            if isinstance(value, int | float):
                found.append((owner, name, value))
                setattr(owner, name, 0.0)
    return found


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _router(gate: Gate) -> Router:
    return Router(gate.name, gate.source.module, gate.source.position)
