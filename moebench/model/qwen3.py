"""The weights of a model under the names of Qwen3-MoE, and from them; the function stays the same.

    ours                                    Qwen3-MoE
    norms without a gain                    norm weights of 1
    one gain, of queries                    q_norm, and k_norm of 1
    stacked experts [inputs, outputs]       a matrix [outputs, inputs] for each expert and half
    factors of the experts' weights         multiplied into the experts' last matrix
    dense layers                            mlp_only_layers

Norm weights that are not 1 are multiplied into the matrix that reads the norm's output. A k_norm is
multiplied into q_norm where both channels of each rotated pair have one weight: only then do
rotations commute with it. Other ones, which published Qwen3 have, are refused.

A layer without experts there, as all of Qwen3 are, gives its weights to each expert here (sparse
upcycling, arXiv 2212.05055). Nothing is added to them: the router, which is fresh, gives the
experts other tokens, and so parts them.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from moebench.model.transformer import Attention, Block, MoETransformer

Read = Callable[[str], Tensor | None]  # a tensor of a checkpoint by its name; None: it has none


def to_qwen3(model: MoETransformer) -> Iterator[tuple[str, Tensor]]:
    """The tensors under the names of Qwen3-MoE; some share memory."""
    ones = torch.ones(model.embedding.shape[1])
    yield "model.embed_tokens.weight", model.embedding.detach()
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        at = f"model.layers.{number}"
        yield f"{at}.input_layernorm.weight", ones
        yield f"{at}.post_attention_layernorm.weight", ones
        for name, value in _attention(block.attention):
            yield f"{at}.self_attn.{name}.weight", value
        for name, value in _feed_forward(block):
            yield f"{at}.mlp.{name}.weight", value
    yield "model.norm.weight", ones
    yield "lm_head.weight", model.head.detach()


def _attention(attention: Attention) -> Iterator[tuple[str, Tensor]]:
    for name, rows in zip("qkv", attention.qkv.detach().chunk(3), strict=True):
        yield f"{name}_proj", rows
    yield "o_proj", attention.out.detach()
    yield "q_norm", attention.gain.detach()
    yield "k_norm", torch.ones_like(attention.gain)


def _feed_forward(block: Block) -> Iterator[tuple[str, Tensor]]:
    if block.gating is None:
        gate, up = block.dense.up.detach().chunk(2)
        yield from zip(("gate_proj", "up_proj"), (gate, up), strict=True)
        yield "down_proj", block.dense.down.detach()
        return
    yield "gate", block.router.weight.detach()
    factor = torch.full((len(block.experts.up),), block.gating.scale)
    if block.gating.expert_scale:
        factor = factor * block.router.scale.detach()
    gate, up = block.experts.up.detach().chunk(2, dim=-1)
    down = block.experts.down.detach() * factor[:, None, None]
    for expert in range(len(factor)):
        yield f"experts.{expert}.gate_proj", gate[expert].T
        yield f"experts.{expert}.up_proj", up[expert].T
        yield f"experts.{expert}.down_proj", down[expert].T


@torch.no_grad()
def from_qwen3(model: MoETransformer, read: Read) -> None:
    """Set the weights of a model to those of a checkpoint of Qwen3-MoE or Qwen3.

    What such a checkpoint does not have keeps its value: fresh routers of layers that had no
    experts, biases and factors of routers, tokens of domains.

    Args:
        read: the checkpoint's tensors, in the dtype of the model's weights.

    Raises:
        ValueError: for a tensor that is missing, of another shape, not finite, or of no use here.
    """

    def needed(name: str) -> Tensor:
        found = read(f"{name}.weight")
        if found is None:
            raise ValueError(f"lacks {name}.weight")
        if not torch.isfinite(found).all():
            raise ValueError(f"has NaN or infinity in {name}.weight")
        return found

    _set(model.embedding, needed("model.embed_tokens"), "model.embed_tokens")
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        at = f"model.layers.{number}"
        norm = needed(f"{at}.input_layernorm")
        _read_attention(block.attention, norm, needed, f"{at}.self_attn")
        norm = needed(f"{at}.post_attention_layernorm")
        if read(f"{at}.mlp.gate.weight") is None:
            _read_dense(block, norm, needed, f"{at}.mlp")
        else:
            _read_experts(block, norm, needed, f"{at}.mlp")
    tied = read("lm_head.weight") is None
    head = needed("model.embed_tokens" if tied else "lm_head")
    _set(model.head, head * needed("model.norm"), "lm_head")


Needed = Callable[[str], Tensor]  # by its name without `.weight`


def _set(parameter: Tensor, value: Tensor, name: str) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"has {list(value.shape)} in {name}, in place of {list(parameter.shape)}")
    parameter.copy_(value)


def _read_attention(attention: Attention, norm: Tensor, needed: Needed, at: str) -> None:
    width = attention.gain.shape[0]

    def rows(name: str) -> Tensor:
        """[d_model, d_model]; heads that share keys and values get a copy each."""
        found = (needed(f"{at}.{name}") * norm).unflatten(0, (-1, width))
        return found.repeat_interleave(attention.num_heads // len(found), 0).flatten(0, 1)

    _set(attention.qkv, torch.cat([rows(f"{name}_proj") for name in "qkv"]), at)
    _set(attention.out, needed(f"{at}.o_proj"), at)
    q, k = needed(f"{at}.q_norm"), needed(f"{at}.k_norm")
    first, second = k.chunk(2)  # the channels of a pair
    if not torch.equal(first, second):
        raise ValueError(
            f"has a {at}.k_norm whose halves differ, and the gain of queries cannot hold it; "
            "balance it in its own trainer, by moebench.hooks,"
        )
    _set(attention.gain, q * k, f"{at}.q_norm")


def _read_dense(block: Block, norm: Tensor, needed: Needed, at: str) -> None:
    """The weights of a layer without experts; to a layer with experts, a copy for each."""
    up = torch.cat([needed(f"{at}.gate_proj"), needed(f"{at}.up_proj")]) * norm
    down = needed(f"{at}.down_proj")
    if block.gating is None:
        _set(block.dense.up, up, at)
        _set(block.dense.down, down, at)
        return
    number = len(block.experts.up)
    _set(block.experts.up, up.T.expand(number, -1, -1), at)
    _set(block.experts.down, down.T.expand(number, -1, -1) / block.gating.scale, at)


def _read_experts(block: Block, norm: Tensor, needed: Needed, at: str) -> None:
    if block.gating is None:
        raise ValueError(f"has experts in {at}, in place of a dense layer")
    _set(block.router.weight, needed(f"{at}.gate") * norm, f"{at}.gate")
    for expert in range(len(block.experts.up)):
        name = f"{at}.experts.{expert}"
        up = torch.cat([needed(f"{name}.gate_proj"), needed(f"{name}.up_proj")]) * norm
        _set(block.experts.up[expert], up.T, name)
        _set(block.experts.down[expert], needed(f"{name}.down_proj").T / block.gating.scale, name)
