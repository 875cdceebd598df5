"""Trying a balance loss: steps of real processes over gloo, as a trainer takes them."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moebench.conform.problem import SCENARIOS, TOP_K, Scenario, inputs, routers
from moebench.errors import ConfigError
from moebench.registry import load_function

Reduction = Literal["mean", "sum"]
PATIENCE = 60  # seconds that a rank waits for another


def try_all(target: str, accumulation: Reduction, ranks: Reduction) -> dict[Scenario, Tensor | str]:
    """The gradient of each scenario, or what was raised.

    Args:
        target: `MODULE:FUNCTION`, or `FILE.py:FUNCTION`.
        accumulation: how the trainer combines the losses of passes.
        ranks: how it combines the gradients of ranks; DDP takes their mean.

    Raises:
        ConfigError: if there is no such function.
    """
    load_function(target)  # an error of its import is one of this process
    size = max(scenario.ranks for scenario in SCENARIOS)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        workers = [
            context.Process(
                target=_work, args=(target, rank, folder, accumulation, end), daemon=True
            )
            for rank, (_, end) in enumerate(pipes)
        ]
        try:
            for worker, (_, end) in zip(workers, pipes, strict=True):
                worker.start()
                end.close()
            told = [_received(start, rank) for rank, (start, _) in enumerate(pipes)]
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()
    return {
        scenario: combined([told[rank][scenario] for rank in range(scenario.ranks)], ranks)
        for scenario in SCENARIOS
    }


def of_rank(
    target: str, rank: int, folder: str, accumulation: Reduction
) -> Iterator[tuple[Scenario, Tensor | str]]:
    """One rank's gradient in each of its scenarios, or what was raised.

    Args:
        folder: an empty one, in which ranks meet.
    """
    store = dist.FileStore(f"{folder}/store", -1)  # pyright: ignore[reportPrivateImportUsage]
    store.set_timeout(timedelta(seconds=3 * PATIENCE))

    def meet(place: str, ranks: int) -> None:
        store.set(f"{place} {rank}", "")
        store.wait([f"{place} {other}" for other in range(ranks)])

    for number, scenario in enumerate(SCENARIOS):
        if rank >= scenario.ranks:
            continue
        meet(f"before {number}", scenario.ranks)  # one may have waited long for one that raised
        # a group each: the end of one frees the ranks that wait for one that raised
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{number}",
            rank=rank,
            world_size=scenario.ranks,
            timeout=timedelta(seconds=PATIENCE),
        )
        meet(f"begun {number}", scenario.ranks)  # else one could end it while another begins it
        try:
            loss = load_function(target)
            loss = loss() if isinstance(loss, type) else loss  # a class: an object a scenario
            result: Tensor | str = _gradient(loss, scenario, rank, accumulation)
        except Exception as error:
            result = " ".join(f"raised {type(error).__name__}: {error}".split())[:200]
        dist.destroy_process_group()
        yield scenario, result


def _received(pipe: Connection, rank: int) -> dict[Scenario, Tensor | str]:
    ended = "its process ended without a word"
    results: dict[Scenario, Tensor | str] = {
        scenario: ended for scenario in SCENARIOS if scenario.ranks > rank
    }
    for _ in range(len(results)):
        try:
            scenario, result = pipe.recv()
        except EOFError:
            break
        results[scenario] = result if isinstance(result, str) else torch.tensor(result)
    return results


def combined(by_rank: list[Tensor | str], ranks: Reduction) -> Tensor | str:
    """The gradient of all ranks, or what was raised on them."""
    raised = {rank: said for rank, said in enumerate(by_rank) if isinstance(said, str)}
    if len({*raised.values()}) > 1:
        return "; ".join(f"rank {rank} {said}" for rank, said in raised.items())
    if raised:
        return next(iter(raised.values()))
    gradients = torch.stack([result for result in by_rank if isinstance(result, Tensor)])
    return gradients.mean(0) if ranks == "mean" else gradients.sum(0)


def _work(target: str, rank: int, folder: str, accumulation: Reduction, pipe: Connection) -> None:
    """One rank in a process of its own."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for scenario, result in of_rank(target, rank, folder, accumulation):
        pipe.send((scenario, result if isinstance(result, str) else result.tolist()))


def _gradient(
    loss: Callable[..., Any], scenario: Scenario, rank: int, accumulation: Reduction
) -> Tensor:
    """[layers, width, experts] the gradient of this rank's routers in the last step."""
    weight = routers().requires_grad_()
    for step in range(scenario.steps):
        weight.grad = None
        batches = [inputs(scenario, step, rank, number) for number in range(scenario.passes)]
        if hasattr(loss, "begin"):
            with torch.no_grad():
                loss.begin([(_logits(x, weight), mask) for x, mask in batches], top_k=TOP_K)  # pyright: ignore
        for x, mask in batches:
            value = _value(loss, x, mask, weight, scenario.recompute)
            if value.requires_grad:
                (value / len(batches) if accumulation == "mean" else value).backward()
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _value(
    loss: Callable[..., Any], x: Tensor, mask: Tensor, weight: Tensor, recompute: bool
) -> Tensor:
    def value(x: Tensor, weight: Tensor) -> Tensor:
        result = loss(_logits(x, weight), top_k=TOP_K, mask=mask)
        if not isinstance(result, Tensor) or result.dim():
            raise ConfigError(f"returned {type(result).__name__}: must be a tensor of no dimension")
        return result

    if not recompute:
        return value(x, weight)
    result = checkpoint(value, x, weight, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result


def _logits(x: Tensor, weight: Tensor) -> list[Tensor]:
    return list(torch.einsum("std,lde->lste", x, weight))
