"""Causal attention from projected rows on a CPU as one operator, with a written-out backward.

    q, k = turned(gain * normed(q)), turned(normed(k));   P = softmax(q k^T / sqrt(width));   P v

It works on a few sequences at a time, so that what lies between two products stays in the
processor's cache, and multiplies blocks of queries by the keys up to their last one, which halves
the products of long sequences. Where its caller is compiled, so are its norms and positions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moebench.model.arms import mapped
from moebench.model.norm import EPS
from moebench.model.pieces import compiled
from moebench.model.rotary import rotate

CHUNK = 2**19  # elements of projected rows that are computed at once
FUSED_CHUNK = 2**21  # the same, where the compiler leaves few passes over them
BLOCK = 64  # queries that share a product


def cpu_attention(
    qkv: Float[Tensor, "sequences tokens 3 heads width"],
    gain: Float[Tensor, " width"],
    cos: Float[Tensor, "tokens half"],
    sin: Float[Tensor, "tokens half"],
    mask: Bool[Tensor, "sequences tokens tokens"] | None = None,
) -> Float[Tensor, "sequences tokens heads width"]:
    """The mixed values of each token's earlier tokens and itself, or as masked.

    Args:
        mask: True where a token (second axis) may attend to another (third axis).
    """
    fused = torch.compiler.is_compiling()
    return torch.ops.moebench.cpu_attention(qkv, gain[None], cos, sin, mask, fused)[0]


def _forward(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixed values, the turned queries and keys, and the attention of all blocks in a row.

    Args:
        gain: [arms, width]; the sequences of an arm follow each other.
        fused: whether the compiler has fused what lies between products.
    """
    sequences, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(sequences, tokens, heads, width)
    turned = qkv.new_empty(2, sequences, heads, tokens, width)
    attention = qkv.new_empty(sequences, heads * _entries(tokens))
    prepare = compiled(_prepared) if fused else _prepare
    for arm, span in _chunks(qkv, len(gain), FUSED_CHUNK if fused else CHUNK):
        prepare(qkv[span], gain[arm], cos, sin, turned[:, span])
        q, k = turned[:, span].flatten(1, 2).unbind()
        v = qkv[span, :, 2].transpose(1, 2).reshape(q.shape)
        mixed = torch.empty_like(q)
        for rows, probs in _blocks(attention[span], tokens, len(q)):
            torch.bmm(q[:, rows], k[:, : rows.stop].mT, out=probs)
            _hide(probs, rows, None if mask is None else mask[span])
            torch.softmax(probs, -1, out=probs)
            mixed[:, rows] = probs @ v[:, : rows.stop]
        out[span] = mixed.unflatten(0, (-1, heads)).transpose(1, 2)
    return out, turned, attention


def _backward(
    grad: Tensor,
    qkv: Tensor,
    gain: Tensor,
    cos: Tensor,
    sin: Tensor,
    turned: Tensor,
    attention: Tensor,
    fused: bool,
) -> tuple[Tensor, Tensor]:
    heads = qkv.shape[3]
    of_qkv, of_gain = torch.empty_like(qkv), torch.zeros_like(gain)
    unprepare = compiled(_unprepared) if fused else _unprepare
    for arm, span in _chunks(qkv, len(gain), FUSED_CHUNK if fused else CHUNK):
        q, k = turned[:, span].flatten(1, 2).unbind()
        v, of_out = (
            part.transpose(1, 2).reshape(q.shape) for part in (qkv[span, :, 2], grad[span])
        )
        of_qk, of_v = torch.empty_like(turned[:, span].flatten(1, 2)), torch.empty_like(v)
        of_q, of_k = of_qk
        blocks = list(_blocks(attention[span], qkv.shape[1], len(q)))
        for rows, probs in reversed(blocks):
            before = slice(0, rows.stop)
            of_scores = torch.bmm(of_out[:, rows], v[:, before].mT)
            torch.ops.aten._softmax_backward_data.out(
                of_scores, probs, -1, probs.dtype, grad_input=of_scores
            )
            of_q[:, rows] = of_scores @ k[:, before]
            if rows.stop == qkv.shape[1]:
                torch.bmm(of_scores.mT, q[:, rows], out=of_k)
                torch.bmm(probs.mT, of_out[:, rows], out=of_v)
            else:
                of_k[:, before].baddbmm_(of_scores.mT, q[:, rows])
                of_v[:, before].baddbmm_(probs.mT, of_out[:, rows])
        of_turned = of_qk.unflatten(1, (-1, heads))
        of_gain[arm] += unprepare(of_turned, qkv[span], gain[arm], cos, sin, of_qkv[span])
        of_qkv[span, :, 2] = of_v.unflatten(0, (-1, heads)).transpose(1, 2)
    return of_qkv, of_gain


def _chunks(qkv: Tensor, arms: int, elements: int) -> Iterator[tuple[int, slice]]:
    """The arm and the sequences of each chunk."""
    of_arm = len(qkv) // arms
    size = max(1, elements // max(1, qkv[0].numel()))
    for arm in range(arms):
        for start in range(arm * of_arm, (arm + 1) * of_arm, size):
            yield arm, slice(start, min(start + size, (arm + 1) * of_arm))


def _entries(tokens: int) -> int:
    """Entries of the attention of one head."""
    return sum(
        min(BLOCK, tokens - start) * min(start + BLOCK, tokens) for start in range(0, tokens, BLOCK)
    )


def _blocks(attention: Tensor, tokens: int, number: int) -> Iterator[tuple[slice, Tensor]]:
    """The queries of each block, and its attention to the keys up to the last of them."""
    flat, place = attention.view(-1), 0
    for start in range(0, tokens, BLOCK):
        stop = min(start + BLOCK, tokens)
        size = number * (stop - start) * stop
        yield slice(start, stop), flat[place : place + size].view(number, stop - start, stop)
        place += size


def _hide(scores: Tensor, rows: slice, mask: Tensor | None) -> None:
    """Set the scores of what a token may not attend to to minus infinity."""
    if mask is None:
        size = rows.stop - rows.start
        later = torch.full((size, size), -torch.inf, dtype=scores.dtype).triu_(1)
        scores[:, :, rows].add_(later)
    else:
        hidden = mask[:, None, rows, : rows.stop].logical_not()
        scores.unflatten(0, (len(mask), -1)).masked_fill_(hidden, -torch.inf)


def _normed(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, [sequences, tokens, 2, heads, width], and their inverse root mean square,
    in fp32 or wider."""
    qk = qkv[:, :, :2]
    qk = qk.to(torch.promote_types(qk.dtype, torch.float32))
    inverse = (qk * qk).sum(-1, keepdim=True).div_(qk.shape[-1]).add_(EPS).rsqrt_()
    return qk * inverse, inverse


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` of [sequences, tokens, 2, heads, width]."""
    cos, sin = (table.to(x.dtype)[:, None, None] for table in (cos, sin))
    out = torch.empty_like(x)
    (first, second), (one, other) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=other).addcmul_(first, sin)
    return out


def _prepare(qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Normalised, gained and turned queries and keys into [2, sequences, heads, tokens, width]."""
    normed, _ = _normed(qkv)
    normed[:, :, 0].mul_(gain.to(normed.dtype) * qkv.shape[-1] ** -0.5)
    out.copy_(_turned(normed, cos, sin).permute(2, 0, 3, 1, 4))


def _unprepare(
    of_turned: Tensor, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, of_qkv: Tensor
) -> Tensor:
    """The backward of `_prepare`: queries and keys of `of_qkv`, and the gradient of the gain."""
    scale = qkv.shape[-1] ** -0.5
    normed, inverse = _normed(qkv)
    grads = _turned(of_turned.permute(1, 3, 0, 2, 4).to(normed.dtype), cos, -sin)
    product, wide = grads * normed, gain.to(normed.dtype) * scale
    of_gain = product[:, :, 0].sum((0, 1, 2)) * scale
    grads[:, :, 0].mul_(wide)
    product[:, :, 0].mul_(wide)
    grads.addcmul_(normed, product.sum(-1, keepdim=True), value=-1 / qkv.shape[-1]).mul_(inverse)
    of_qkv[:, :, :2] = grads
    return of_gain


def _prepared(qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """`_prepare` as a formula."""
    normed, _ = _normed(qkv)
    out.copy_(rotate((normed * _scales(gain)).permute(2, 0, 3, 1, 4), cos, sin))


def _unprepared(
    of_turned: Tensor, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, of_qkv: Tensor
) -> Tensor:
    """`_unprepare` as a formula."""
    normed, inverse = _normed(qkv)
    grads = rotate(of_turned.to(normed.dtype), cos, -sin).permute(1, 3, 0, 2, 4)
    of_gain = (grads * normed)[:, :, 0].sum((0, 1, 2)) * qkv.shape[-1] ** -0.5
    grads = grads * _scales(gain)
    of_qkv[:, :, :2].copy_((grads - normed * (grads * normed).mean(-1, keepdim=True)) * inverse)
    return of_gain


def _scales(gain: Tensor) -> Tensor:
    """The factors of normalised queries and keys, [2, 1, width]."""
    gain = gain.to(torch.promote_types(gain.dtype, torch.float32)) * len(gain) ** -0.5
    return torch.stack([gain, torch.ones_like(gain)]).unsqueeze(1)


def _fake_forward(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    sequences, tokens, _, heads, width = qkv.shape
    return (
        qkv.new_empty(sequences, tokens, heads, width),
        qkv.new_empty(2, sequences, heads, tokens, width),
        qkv.new_empty(sequences, heads * _entries(tokens)),
    )


def _fake_backward(
    grad: Tensor,
    qkv: Tensor,
    gain: Tensor,
    cos: Tensor,
    sin: Tensor,
    turned: Tensor,
    attention: Tensor,
    fused: bool,
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), torch.empty_like(gain)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.set_materialize_grads(False)
    ctx.fused = inputs[5]


def _grads(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    found = torch.ops.moebench.cpu_attention_backward(grad, *ctx.saved_tensors, ctx.fused)
    return *found, None, None, None, None


def _of_arms(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> Any:
    """The sequences of stacked arms follow each other."""
    qkv, gain = (part.flatten(0, 1) for part in mapped(info, dims[:2], *inputs[:2]))
    mask = inputs[4] if inputs[4] is None else mapped(info, dims[4:5], inputs[4])[0].flatten(0, 1)
    found = torch.ops.moebench.cpu_attention(qkv, gain, *inputs[2:4], mask, inputs[5])
    of_arm = info.batch_size, len(qkv) // info.batch_size
    return tuple(part.unflatten(dim, of_arm) for part, dim in zip(found, (0, 1, 0), strict=True)), (
        0,
        1,
        0,
    )


torch.library.define(
    "moebench::cpu_attention",
    "(Tensor qkv, Tensor gain, Tensor cos, Tensor sin, Tensor? mask, bool fused)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "moebench::cpu_attention_backward",
    "(Tensor grad, Tensor qkv, Tensor gain, Tensor cos, Tensor sin, Tensor turned,"
    " Tensor attention, bool fused) -> (Tensor, Tensor)",
)
torch.library.impl("moebench::cpu_attention", "default", _forward)
torch.library.impl("moebench::cpu_attention_backward", "default", _backward)
torch.library.register_fake("moebench::cpu_attention", _fake_forward)
torch.library.register_fake("moebench::cpu_attention_backward", _fake_backward)
torch.library.register_autograd("moebench::cpu_attention", _grads, setup_context=_keep)
torch.library.register_vmap("moebench::cpu_attention", _of_arms)
