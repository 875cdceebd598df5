"""Anyone's balance loss, held to the definition over passes, ranks, padding and recomputation."""

from typing import Literal

from moebench.conform.problem import ScopeName
from moebench.conform.trial import try_all
from moebench.conform.verdict import Conformance, Verdict, judge

__all__ = ["Conformance", "Verdict", "conformance"]


def conformance(
    target: str,
    scope: ScopeName = "global",
    *,
    accumulation: Literal["mean", "sum"] = "mean",
    ranks: Literal["mean", "sum"] = "mean",
) -> Conformance:
    """Try a balance loss in steps of several passes and ranks, and say what it computes.

    Args:
        target: `MODULE:FUNCTION` or `FILE.py:FUNCTION`. It is called once for each pass, on each
            rank of a gloo process group, as `function(router_logits, top_k=, mask=)`: a list of
            [sequences, tokens, experts], one of each layer, and a bool [sequences, tokens] that is
            False at padding. It returns the loss of the pass, a scalar. A class is made anew for
            each step of several passes that is tried. If the object has
            `begin([(router_logits, mask), ...], top_k=)`, that is called with all passes of a step
            before the first.
        scope: whose f it claims to have: that of the whole step, of a pass, or of a sequence.
        accumulation: how the trainer combines the losses of passes.
        ranks: how it combines the gradients of ranks.

    Raises:
        ConfigError: if there is no such function.
    """
    return judge(try_all(target, accumulation, ranks), scope)
