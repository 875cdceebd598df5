"""Text that a trained model continues, token by token."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from moebench.errors import ConfigError
from moebench.evaluate import Checkpoint

COLDEST = 1e-6  # temperature; below it, quotients overflow, and the likeliest has all the mass


def encoded(checkpoint: Checkpoint, prompt: str) -> list[int]:
    """The tokens of a prompt, which begins like a document.

    Raises ConfigError for a prompt that is not UTF-8.
    """
    try:
        content = prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError("--prompt: is not valid UTF-8; pass text in that encoding") from None
    return [checkpoint.tokenizer.end, *checkpoint.tokenizer.encode(content).tolist()]


@torch.no_grad()
def continued(
    checkpoint: Checkpoint,
    tokens: list[int],
    *,
    number: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    domain: int | None = None,
) -> Iterator[int]:
    """The next tokens, at most `number`, until a document ends.

    The model sees as many tokens as it was trained on at most, the last ones.

    Args:
        checkpoint: of a run.
        tokens: to continue, at least one.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only so many of the likeliest tokens are drawn from; None: all.
        seed: of the draws.
        domain: the number of the domain that the text is of, for runs that read domains.
    """
    generator = torch.Generator().manual_seed(seed)
    named = None if domain is None else torch.tensor([domain])
    seen = list(tokens)
    for _ in range(number):
        inputs = torch.tensor([seen[-checkpoint.config.seq_len :]], device=checkpoint.device)
        logits, _ = checkpoint(inputs, named)
        chosen = _drawn(logits[0, -1].float().cpu(), temperature, top_k, generator)
        if chosen == checkpoint.tokenizer.end:
            return
        seen.append(chosen)
        yield chosen


def _drawn(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> int:
    if temperature < COLDEST:
        return int(logits.argmax())
    if top_k is not None:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def decoded(checkpoint: Checkpoint, tokens: list[int]) -> str:
    """The text of tokens, without end tokens."""
    return checkpoint.tokenizer.decode(np.array(tokens, np.int64))
