"""Balance in the Trainer of Hugging Face: each optimizer step is announced to a `Balancer`."""

from collections.abc import Iterator
from typing import Any

import torch

from moebench.balance import Scope
from moebench.errors import ConfigError
from moebench.hooks.balancer import Balancer


def balance_trainer(
    trainer: Any, scope: Scope | None = None, *, weight: float, **options: Any
) -> Balancer:
    """Balance the routers of a Trainer's model over its whole step, whatever its accumulation.

    The Trainer is used as before. Its model's own balance loss gets the weight 0.

    Args:
        trainer: `transformers.Trainer`, or one of its subclasses; one process per GPU.
        scope: as in `Balancer`.
        weight: as in `Balancer`.
        options: more arguments of `Balancer`.

    Returns:
        The balancer, whose `loss()` and `counts()` describe the last step.

    Raises:
        ConfigError: for a Trainer that spreads its model over several GPUs in one process.
    """
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            f"a Trainer on {trainer.args.n_gpu} GPUs in one process: start a process for each, "
            "as in torchrun --nproc-per-node"
        )
    balancer = Balancer(trainer.model, scope, weight=weight, **options)
    collect = trainer.get_batch_samples

    def collect_and_announce(
        batches: Iterator[Any], number: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        collected, items = collect(batches, number, device)
        if collected:
            trainer.model.train()  # as the passes that follow
            balancer.scaler = trainer.accelerator.scaler
            with trainer.compute_loss_context_manager():
                balancer.begin([trainer._prepare_inputs(batch) for batch in collected])
        return collected, items

    trainer.get_batch_samples = collect_and_announce
    return balancer
