"""What a checkpoint refuses to hold."""

from pathlib import Path

import pytest
import torch

from moebench.config.compose import Composer
from moebench.errors import TrainingError
from moebench.train.build import make_state
from moebench.train.checkpoint import save_checkpoint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_moments_that_are_not_finite_are_not_saved(
    value: float, tmp_path: Path
) -> None:
    """Although no token may have needed them, so that no loss shows them."""
    config = Composer().compose(["model=smoke"])
    state = make_state(config, 257, torch.device("cpu"))
    state.step = 3
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    save_checkpoint(tmp_path, state)
    state.step, router = 4, state.model.router_weights[0]
    moment = state.optimizer.state[router]["exp_avg_sq"]
    name = next(name for name, each in state.model.named_parameters() if each is router)
    for tensor, named in ((moment, rf"moment {name}/exp_avg_sq"), (router.data, f"weight {name}")):
        tensor[0, 0] = value
        with pytest.raises(TrainingError, match=f"step 4: the {named} is not finite"):
            save_checkpoint(tmp_path, state)
        tensor[0, 0] = 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
