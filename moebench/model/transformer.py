"""The language model: pre-norm blocks of causal attention and experts.

It keeps no routing state, writes nothing in place, and has no shapes that depend on data, so that
arms can be stacked. It returns the routing with the logits.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moebench.balance import Routing, Steering, join, no_routing
from moebench.model.conversion import Convert, converting
from moebench.model.cpu_attention import cpu_attention
from moebench.model.cpu_products import linear
from moebench.model.experts import Experts, SharedExpert
from moebench.model.fused_attention import fused_attention
from moebench.model.norm import rms_norm
from moebench.model.rotary import Rotary, heads, rotary_tables
from moebench.model.router import Gating, Router, Selection


class Attention(nn.Module):
    """Causal self-attention with normalised, gained queries and keys and rotary positions."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sdpa: bool | None = None  # whether torch's fused kernel is used; None: by the device
        self.qkv = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.out = nn.Parameter(torch.empty(d_model, d_model))
        self.gain = nn.Parameter(torch.empty(d_model // num_heads))

    def forward(
        self,
        x: Float[Tensor, "sequences tokens d_model"],
        rotary: Rotary,
        mask: Bool[Tensor, "sequences tokens tokens"] | None = None,
        convert: Convert | None = None,
    ) -> Float[Tensor, "sequences tokens d_model"]:
        convert = convert or converting(x.dtype)
        qkv = linear(x, convert(self.qkv)).unflatten(-1, (3, self.num_heads, -1))
        if x.device.type == "cpu" and not self.sdpa:
            mixed = cpu_attention(qkv, self.gain, *rotary, mask)
        else:
            q, k, v = heads(qkv, convert(self.gain), rotary)
            mixed = causal_attention(q, k, v, mask, sdpa=self.sdpa).transpose(1, 2)
        return linear(mixed.flatten(2), convert(self.out))


def causal_attention(
    q: Float[Tensor, "sequences heads tokens width"],
    k: Float[Tensor, "sequences heads tokens width"],
    v: Float[Tensor, "sequences heads tokens width"],
    mask: Bool[Tensor, "sequences tokens tokens"] | None = None,
    *,
    sdpa: bool | None = None,
) -> Float[Tensor, "sequences heads tokens width"]:
    """softmax(q k^T / sqrt(width)) v over each token and the earlier ones, or as masked.

    A CPU runs `cpu_attention`, unless `sdpa` is set: there, torch's fused kernel is slower, and has
    no vmap rule.

    Args:
        mask: True where a token (second axis) may attend to another (third axis).
    """
    if q.is_cuda if sdpa is None else sdpa:
        return fused_attention(q, k, v, mask)
    tokens, width = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) * width**-0.5
    if mask is None:
        later = torch.full((tokens, tokens), -math.inf, dtype=q.dtype, device=q.device)
        scores = scores + later.triu(1)
    else:
        scores = scores.masked_fill(~mask.unsqueeze(1), -math.inf)
    return scores.softmax(-1) @ v


def within_documents(
    tokens: Int[Tensor, "sequences tokens"], end: int
) -> Bool[Tensor, "sequences tokens tokens"]:
    """Which tokens each token may attend to: itself and the earlier ones of its document.

    A document ends with an end mark, which belongs to it.

    Args:
        end: the token that marks the end of a document.
    """
    ended = (tokens == end).long()
    document = ended.cumsum(-1) - ended  # [sequences, tokens]
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    return same & torch.ones_like(same).tril()


class Block(nn.Module):
    """One layer: attention, then experts, each on the normalised residual stream.

    Args:
        zero_experts: how many of the experts, the last ones, return their input.
        number: of the layer.
        gating: how its router selects experts; None: a dense layer without a router, whose SwiGLU
            is as wide as all experts of a token together.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_experts: int,
        top_k: int,
        expert_dim: int,
        num_shared_experts: int,
        *,
        zero_experts: int = 0,
        number: int = 0,
        gating: Gating | None = None,
    ) -> None:
        super().__init__()
        self.attention = Attention(d_model, num_heads)
        self.gating = gating
        if gating is None:
            self.dense = SharedExpert(d_model, (top_k + num_shared_experts) * expert_dim)
            return
        self.router = Router(d_model, num_experts, top_k, gating, number)
        self.zero_experts = zero_experts
        self.experts = Experts(num_experts - zero_experts, d_model, expert_dim)
        self.shared = (
            SharedExpert(d_model, num_shared_experts * expert_dim) if num_shared_experts else None
        )

    def products(self) -> list[Tensor]:
        """The weights that are read in the dtype of products: all but the router's."""
        attention, dense = self.attention, self.dense if self.gating is None else self.shared
        weights: list[Tensor] = [attention.qkv, attention.gain, attention.out]
        weights += [] if dense is None else [dense.up, dense.down]
        return weights if self.gating is None else [*weights, self.experts.up, self.experts.down]

    def forward(
        self,
        x: Float[Tensor, "sequences tokens d_model"],
        compute: torch.dtype,
        convert: Convert,
        rotary: Rotary,
        mask: Bool[Tensor, "sequences tokens tokens"] | None = None,
        steering: Steering | None = None,
        *,
        training: bool = False,
    ) -> tuple[Float[Tensor, "sequences tokens d_model"], Routing | None]:
        x = x + self.attention(rms_norm(x).to(compute), rotary, mask, convert).to(x.dtype)
        normed = rms_norm(x)
        if self.gating is None:
            return x + self.dense(normed.to(compute), None, convert).to(x.dtype), None
        chosen: Selection = self.router(normed, steering, training=training)
        normed, routing = normed.to(compute), chosen.routing
        if "outputs" in self.gating.observes:
            mixed, outputs = self._expert_outputs(normed, chosen, convert)
            routing = routing._replace(outputs=outputs[None])
        elif chosen.assignments is not None:
            mixed = self._mixed_sparse(normed, chosen, convert, training)
        else:
            mixed = self._mixed(normed, chosen.expert_index, chosen.weights, convert)
        if self.shared is not None:
            mixed = mixed + self.shared(normed, chosen.shared, convert)
        return x + mixed.to(x.dtype), routing

    def _mixed(
        self, x: Tensor, expert_index: Tensor, weights: Tensor, convert: Convert | None = None
    ) -> Tensor:
        """The weighted sum of each token's experts.

        An expert that returns its input is computed as another expert with a weight of 0, since the
        number of rows may not depend on the data.
        """
        if self.zero_experts:
            computed = self.experts.up.shape[0]
            zero = expert_index >= computed
            own = self._mixed_computed(x, expert_index % computed, weights * ~zero, convert)
            return own + (weights * zero).sum(-1, keepdim=True).to(x.dtype) * x
        return self._mixed_computed(x, expert_index, weights, convert)

    def _mixed_computed(
        self, x: Tensor, expert_index: Tensor, weights: Tensor, convert: Convert | None
    ) -> Tensor:
        rows = x.flatten(0, -2), expert_index.flatten(0, -2), weights.flatten(0, -2)
        return self.experts(*rows, convert).view_as(x)

    def _expert_outputs(
        self, x: Tensor, chosen: Selection, convert: Convert
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum over experts, and each output: [sequences, tokens, slots, d_model]."""
        slots = chosen.expert_index.shape[-1]
        copies = x.unsqueeze(2).expand(-1, -1, slots, -1)
        one = torch.ones_like(chosen.weights).unsqueeze(-1)
        outputs = self._mixed(copies, chosen.expert_index.unsqueeze(-1), one, convert)
        return (chosen.weights.unsqueeze(-1).to(outputs.dtype) * outputs).sum(2), outputs

    def _mixed_sparse(
        self, x: Tensor, chosen: Selection, convert: Convert, training: bool
    ) -> Tensor:
        """The weighted sum over experts where many slots are empty, which are not computed.

        In training, the number of computed slots may not depend on the data.
        """
        assert chosen.selected is not None
        assert chosen.assignments is not None
        filled, slots = chosen.selected.flatten(), chosen.expert_index.shape[-1]
        number = chosen.assignments if training else int(filled.sum())
        first = filled.logical_not().int().argsort(stable=True)[:number]
        rows, row = x.flatten(0, 1), first // slots
        outputs = self._mixed(
            # an index has a gradient in a fixed order on a GPU, and is slower on a CPU
            rows[row] if x.is_cuda else rows.index_select(0, row),
            chosen.expert_index.flatten()[first].unsqueeze(-1),
            chosen.weights.flatten()[first].unsqueeze(-1),
            convert,
        )
        empty = torch.zeros_like(rows)
        if x.is_cuda:
            return empty.index_put((row,), outputs, accumulate=True).view_as(x)
        return empty.index_add(0, row, outputs).view_as(x)


class MoETransformer(nn.Module):
    """A decoder-only transformer whose feed-forward layers are mixtures of experts.

    Args:
        vocab_size: number of tokens.
        domains: further tokens, from `vocab_size` on, which name a domain and are never predicted.
        d_model, num_layers, num_heads, num_experts, top_k, expert_dim, num_shared_experts: shape.
        zero_experts: how many of the experts, the last ones, return their input (LongCat-Flash).
        gating: how its routers select experts.
        dense_layers: number of first layers without experts.
        document_end: the token that ends a document; attention does not cross it. None: attention
            covers all earlier tokens.
        compute: dtype of matrix products. Parameters, residual stream, norms, routers and logits
            are fp32, or fp64 if `compute` is.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        num_experts: int,
        top_k: int,
        expert_dim: int,
        num_shared_experts: int = 0,
        zero_experts: int = 0,
        gating: Gating | None = None,
        dense_layers: int = 0,
        compute: torch.dtype = torch.float32,
        document_end: int | None = None,
        domains: int = 0,
    ) -> None:
        super().__init__()
        self.gating = gating = gating or Gating()
        self.num_experts = num_experts
        self.compute = compute
        self.head_width = d_model // num_heads
        self.document_end = document_end
        self.embedding = nn.Parameter(torch.empty(vocab_size, d_model))
        # apart, so that the weights of text are those of a model without them
        self.domains = nn.Parameter(torch.empty(domains, d_model)) if domains else None
        self.blocks = nn.ModuleList(
            Block(
                d_model,
                num_heads,
                num_experts,
                top_k,
                expert_dim,
                num_shared_experts,
                zero_experts=zero_experts,
                number=number,
                gating=gating if number >= dense_layers else None,
            )
            for number in range(num_layers)
        )
        self.head = nn.Parameter(torch.empty(vocab_size, d_model))
        if compute == torch.float64:
            self.double()

    @property
    def router_shape(self) -> tuple[int, int]:
        """(layers, experts) of the routing."""
        return len(self.router_weights), self.num_experts

    @property
    def router_weights(self) -> list[nn.Parameter]:
        """The weight matrix of each router."""
        return [p for name, p in self.named_parameters() if name.endswith("router.weight")]

    @property
    def expert_weights(self) -> list[nn.Parameter]:
        """The first matrix of the routed experts, of each layer that has a router."""
        return [p for name, p in self.named_parameters() if name.endswith("experts.up")]

    def forward(
        self,
        tokens: Int[Tensor, "sequences tokens"],
        steering: Steering | None = None,
        *,
        training: bool = False,
    ) -> tuple[Float[Tensor, "sequences tokens vocab"], Routing]:
        """Logits of each next token, and the routing of every layer that has a router.

        Args:
            steering: of the selection of experts; None: nothing steers.
            training: whether jitter and noise act, and a method assigns experts; the selection may
                then depend on later tokens.
        """
        table = self.embedding
        if self.domains is not None:
            table = torch.cat([table, self.domains])
        x = F.embedding(tokens, table)
        mask = None if self.document_end is None else within_documents(tokens, self.document_end)
        exact = x.dtype if x.device.type == "cpu" else self.compute
        rotary = rotary_tables(tokens.shape[1], self.head_width, exact, x.device)
        convert = converting(self.compute, self._weights_of_products())
        layers: list[Routing] = []
        for block in self.blocks:
            of_layer = None if steering is None else steering.layer(len(layers))
            x, routing = block(x, self.compute, convert, rotary, mask, of_layer, training=training)
            if routing is not None:
                layers.append(routing)
        logits = linear(rms_norm(x).to(self.compute), convert(self.head))
        if not layers:
            layers = [no_routing(tokens.shape[0], tokens.shape[1], self.num_experts, like=x)]
        return logits.to(x.dtype), join(layers, along="layers")

    def _weights_of_products(self) -> list[Tensor]:
        """All weights that are read in the dtype `compute`."""
        return [*(weight for block in self.blocks for weight in block.products()), self.head]  # pyright: ignore


CONSTANT = {"gain": 3.0, "router.temperature": math.log(2), "router.bias": 0.0, "router.scale": 1.0}


def keyed_normal(parameter: Tensor, key: str) -> Tensor:
    """Standard normal numbers in a parameter's shape, in fp32, which depend on the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float32)


@torch.no_grad()
def initialize(model: MoETransformer, seed: int, router: float = 1.0) -> None:
    """Draw every parameter from a normal distribution keyed by (seed, name of the parameter).

    Arms that differ in a gate or method therefore agree bit for bit in every weight they share.
    The standard deviation of a matrix is 1 / sqrt(inputs), times 1 / sqrt(2 * layers) if it writes
    into the residual stream; that of embeddings is 1, and of the head and the routers 0.02.
    Gains are 3: at 1, the scores of normalised queries and keys differ too little for attention to
    select. A cosine router's temperature starts at log 2 (Tutel), a router's bias at 0.

    Args:
        router: factor of the deviation of the routers' logits.
    """
    layers = len(model.blocks)
    for name, parameter in model.named_parameters():
        constant = next((value for end, value in CONSTANT.items() if name.endswith(end)), None)
        if constant is not None:
            parameter.fill_(constant)
            continue
        # a matrix [outputs, inputs], but stacked experts are [experts, inputs, outputs]
        inputs = parameter.shape[1]
        deviation = inputs**-0.5
        if name in ("embedding", "domains"):
            deviation = 1.0
        elif name == "head" or name.endswith(("router.weight", "router.spread", "router.shared")):
            deviation = 0.02 * (1 if name == "head" or name.endswith("spread") else router)
        elif name.endswith((".out", ".down")):
            deviation *= (2 * layers) ** -0.5
        parameter.copy_(keyed_normal(parameter, f"{seed}/{name}") * deviation)


@torch.no_grad()
def perturb_routers(model: MoETransformer, seed: int, deviation: float) -> None:
    """Add noise to the routers' initial weights, for an A/A arm."""
    for name, parameter in model.named_parameters():
        if name.endswith("router.weight"):
            parameter.add_(keyed_normal(parameter, f"{seed}/{name}/perturb") * deviation)
