"""Record the batches that a run trains on: `python -m tests.train.batches_seen DIR KEY=VALUE...`.

It trains in DIR, and writes the hash of each batch to DIR/<rank>.json.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from moebench.cli import app
from moebench.train.feed import Feed


def watched(hashes: list[str]) -> Callable[[Feed, int], tuple[Tensor, Tensor]]:
    """`Feed.__call__` that also appends a hash of each batch."""
    original = Feed.__call__

    def call(feed: Feed, step: int) -> tuple[Tensor, Tensor]:
        tokens, domain = original(feed, step)
        content = tokens.numpy().tobytes() + domain.numpy().tobytes()
        hashes.append(f"{step} {hashlib.sha256(content).hexdigest()}")
        return tokens, domain

    return call


if __name__ == "__main__":
    folder, *overrides = sys.argv[1:]
    seen: list[str] = []
    Feed.__call__ = watched(seen)  # pyright: ignore[reportAttributeAccessIssue]
    runs = f"{folder}/of_ranks"
    app(["train", *overrides, "--runs-dir", runs], standalone_mode=False)
    Path(folder, f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))
