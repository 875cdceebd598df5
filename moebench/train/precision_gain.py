"""How much faster a training step is in bf16 than in fp32 on this machine's CPU.

On some processors it is several times as fast, on others slower. `moebench doctor` and the first
line of a run say which; `train.precision` stays the user's choice.
"""

import time
from contextlib import suppress

import torch

from moebench.config.schema import ExperimentConfig
from moebench.disk import cache_root, read_json, write_json
from moebench.machine import processor
from moebench.train.build import make_model
from moebench.train.gradients import forward_of
from moebench.train.step import Inputs

LEAST = 1.1  # times the speed of fp32; less is no gain, since timings vary
VOCABULARY = 256  # bytes
SEQUENCES = 8
ROUNDS = 5  # the first warms up


def bf16_gain() -> float:
    """The speed of a step of the default model in bf16, as a multiple of that in fp32.

    The first call on a machine measures it, in about a second, and keeps it in the cache folder.
    """
    case = f"{processor()}, torch {torch.__version__}"
    known: dict[str, float] = {}
    with suppress(OSError, ValueError, TypeError):
        content = read_json(cache_root() / "bf16-gain.json")
        known = {key: float(value) for key, value in content.items()}
    if case not in known:
        known[case] = round(measured_gain(), 2)
        with suppress(OSError):
            cache_root().mkdir(parents=True, exist_ok=True)
            write_json(cache_root() / "bf16-gain.json", known)
    return known[case]


def measured_gain() -> float:
    """The ratio of the least seconds of one thread in each precision, measured in turn.

    It takes the time of this process alone, and the least, since a busy machine only adds to it.
    """
    config = ExperimentConfig()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, config.seq_len + 1), generator=draw)
    inputs = Inputs(tokens[:, :-1], None, tokens[:, 1:])
    forwards = {}
    for precision in ("fp32", "bf16"):
        config.train.precision = precision
        forwards[precision] = forward_of(make_model(config, VOCABULARY))
    seconds: dict[str, list[float]] = {precision: [] for precision in forwards}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            for precision, forward in forwards.items():
                start = time.process_time()
                nats, _ = forward([inputs])[0]
                assert nats is not None
                nats.backward()
                seconds[precision].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds["fp32"][1:]) / min(seconds["bf16"][1:])
