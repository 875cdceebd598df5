"""Ray: what it refuses, and a cluster that does not answer. Sweeps on it are in tests/engines/."""

import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from moebench.config.presets import Presets
from moebench.errors import ConfigError
from moebench.study.engines import with_ray
from moebench.study.engines.choice import Choice


def test_a_cluster_that_does_not_answer_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.listen()
        with_ray._knock(f"127.0.0.1:{port}")
        with_ray._knock(f"ray://127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(OSError, match="refused"):
            with_ray._knock(address)
    with_ray._knock("auto")


@pytest.mark.parametrize("slow", [1, with_ray.TRIES - 1, with_ray.TRIES])
def test_a_busy_machine_gets_time_to_start_ray(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slow: int
) -> None:
    late = Exception("The current node timed out during startup.")
    ray = Mock(**{"init.side_effect": [late] * slow + [None], "is_initialized.return_value": False})
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = with_ray.Ray({})
    if slow < with_ray.TRIES:
        assert list(engine.start([])) == []
    else:
        with pytest.raises(ConfigError, match=r"^--launcher ray: Ray cannot be reached \(The curr"):
            engine.start([])
    tries = min(slow + 1, with_ray.TRIES)
    assert (ray.init.call_count, ray.shutdown.call_count) == (tries, slow)
    assert capsys.readouterr().err.count("Ray does not start yet (The current node") == tries - 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("num_gpus=100", "--engine num_gpus=100: this machine has "),
        ("num_cpus=100000", "--engine num_cpus=100000: this machine has "),
        ("num_cpu=1", "--engine: Invalid option keyword num_cpu for remote functions."),
    ],
)
def test_what_ray_or_this_machine_does_not_have_is_said(option: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError) as error:
        Choice("ray", [option]).engine(Presets(), Path())
    assert str(error.value).startswith(message)
