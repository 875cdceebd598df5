"""A training step against that of Hugging Face's Qwen3-MoE, on the shapes A to D.

A step is forward, loss, balance loss, backward and fused AdamW. The entrants take turns in one
process, on the same number of tokens. (Qwen3-MoE predicts one token less per sequence; this is
ignored.) The models have equally many parameters, except for the gains of the norms. On a CPU, the
script uses one thread and reports process time, with wall time beside it. Each entrant is compared
with the default of transformers (grouped_mm, SDPA, fp32) by the median of the paired ratios.

    python benchmarks/race.py [--shapes A D] [--rounds 9] [--threads 1] [--compile] [--memory]
                              [--smoke]

`--compile` adds compiled entrants, which take minutes to compile. `--memory` adds the peak memory
of three steps, measured in a separate process. On a GPU, this is the memory that torch allocates.
On a CPU, it is the increase over the process before the model is created. Compiled entrants are
left out there, because the compiler would count.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from timing import Seconds, device_here, header, timed
from torch import Tensor
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM

from moebench.balance import Global, Term
from moebench.model.transformer import MoETransformer, initialize
from moebench.train.gradients import Wrap, accumulate_gradients, forward_of
from moebench.train.step import Objective, Step


class Shape(NamedTuple):
    d_model: int
    num_heads: int
    num_experts: int
    top_k: int
    expert_dim: int
    seq_len: int
    sequences: int
    vocab_size: int
    num_layers: int = 4

    @property
    def tokens(self) -> int:
        return self.sequences * self.seq_len


SHAPES = {
    "A": Shape(256, 4, 16, 4, 128, 256, 16, 256),
    "B": Shape(256, 4, 16, 4, 128, 256, 16, 4096),
    "C": Shape(256, 4, 64, 8, 64, 256, 16, 256),
    "D": Shape(128, 2, 8, 2, 128, 128, 8, 256),
}
SMOKE = Shape(32, 2, 4, 2, 16, 16, 2, 64, 1)  # for tests
BASE = "HF fp32"
WEIGHT = 0.01  # of the balance loss

Entrant = Callable[[], object]


def model_of(
    shape: Shape, compute: torch.dtype, device: torch.device, seed: int = 0
) -> MoETransformer:
    model = MoETransformer(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        expert_dim=shape.expert_dim,
        compute=compute,
    )
    initialize(model, seed)
    return model.to(device)


def moebench_step(
    shape: Shape, compute: torch.dtype, device: torch.device, wrap: Wrap | None = None
) -> Entrant:
    """A step of moebench: fp32 master weights, matrix products in `compute`."""
    model = model_of(shape, compute, device)
    forward = forward_of(model, wrap)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    objective = Objective((Term(Global(), WEIGHT),), micro_bsz=1)
    tokens = _tokens(shape, device)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(model, objective, Step(tokens, shape.sequences), forward=forward)
        optimizer.step()

    return step


def transformers_step(
    shape: Shape,
    device: torch.device,
    *,
    experts: str = "grouped_mm",
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    compiled: bool = False,
) -> Entrant:
    """A step of Qwen3-MoE of transformers with its own loss, including the balance loss."""
    config = Qwen3MoeConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        head_dim=shape.d_model // shape.num_heads,  # pyright: ignore
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        moe_intermediate_size=shape.expert_dim,
        intermediate_size=shape.expert_dim,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=WEIGHT,
        max_position_embeddings=shape.seq_len,
        use_cache=False,
        tie_word_embeddings=False,
        attn_implementation="sdpa",  # pyright: ignore
    )
    config._experts_implementation = experts
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).to(device=device, dtype=dtype)  # pyright: ignore
    assert model.config._experts_implementation == experts
    model.train()
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = _tokens(shape, device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            # the loss of transformers shifts labels, so there is one target less per sequence
            loss = call(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        optimizer.step()

    return step


def _tokens(shape: Shape, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (shape.sequences, shape.seq_len + 1)
    return torch.randint(0, shape.vocab_size, size, generator=generator).to(device)


def entrants(
    shape: Shape, device: torch.device, *, compiled: bool
) -> dict[str, Callable[[], Entrant]]:
    """A function that builds each entrant, by the name of the entrant."""
    fp32, bf16 = torch.float32, torch.bfloat16
    hugging = partial(transformers_step, shape, device)
    own = partial(moebench_step, shape, device=device)
    found: dict[str, Callable[[], Entrant]] = {
        BASE: hugging,
        "HF fp32, eager experts": partial(hugging, experts="eager"),
        "HF fp32, batched_mm": partial(hugging, experts="batched_mm"),
        "HF autocast bf16": partial(hugging, autocast=True),
        "HF autocast bf16, eager experts": partial(hugging, experts="eager", autocast=True),
        "HF bf16 parameters": partial(hugging, dtype=bf16),
        "moebench fp32": partial(own, compute=fp32),
        "moebench bf16, fp32 parameters": partial(own, compute=bf16),
    }
    if shape.tokens * shape.top_k * shape.d_model * shape.expert_dim * 3 * 4 > 4 * 2**30:
        del found["HF fp32, batched_mm"]  # copies the weights of the experts for every token
    if compiled:
        found |= {
            "HF fp32, compiled": partial(hugging, compiled=True),
            "HF bf16 parameters, compiled": partial(hugging, dtype=bf16, compiled=True),
            "moebench fp32, compiled": partial(own, compute=fp32, wrap=torch.compile),
            "moebench bf16, fp32 parameters, compiled": partial(
                own, compute=bf16, wrap=torch.compile
            ),
        }
    if compiled and device.type == "cuda":
        graphs = partial(torch.compile, mode="reduce-overhead")
        found["moebench bf16, fp32 parameters, CUDA graphs"] = partial(
            own, compute=bf16, wrap=graphs
        )
    return found


def race(
    name: str,
    shape: Shape,
    device: torch.device,
    rounds: int,
    threads: int,
    *,
    compiled: bool,
    memory: bool,
) -> None:
    makers = entrants(shape, device, compiled=compiled)
    field = {}
    for entrant, make in makers.items():
        print(f"{name}: {entrant}", file=sys.stderr)
        field[entrant] = make()
        for _ in range(3):  # CUDA graphs record the second call
            field[entrant]()
    times: dict[str, list[Seconds]] = {entrant: [] for entrant in field}
    for number in range(rounds):
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
        for entrant, act in field.items():
            times[entrant].append(timed(act, device))
    del field
    print(f"\n### {name}: {shape.tokens:,} tokens per step\n")
    more = " peak MB |" if memory else ""
    print(f"| entrant | tokens/s | against HF fp32 | wall tokens/s |{more}")
    print("|---|---:|---:|---:|" + ("---:|" if memory else ""))
    for entrant, of_entrant in times.items():
        ratio = statistics.median(
            a.own / b.own for a, b in zip(times[BASE], of_entrant, strict=True)
        )
        cpu, wall = (statistics.median(column) for column in zip(*of_entrant, strict=True))
        cells = [f"{shape.tokens / cpu:,.0f}", f"{ratio:.2f}", f"{shape.tokens / wall:,.0f}"]
        if memory:
            compiler = device.type == "cpu" and "compiled" in entrant
            cells.append("" if compiler else f"{peak(shape, entrant, threads) / 1e6:,.0f}")
        print(f"| {entrant} | {' | '.join(cells)} |", flush=True)


def peak(shape: Shape, entrant: str, threads: int) -> int:
    """Peak memory in bytes, measured in a separate process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, shape, entrant, threads).result()


def _peak(shape: Shape, entrant: str, threads: int) -> int:
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*compile.*")
    device = device_here()
    before = _most_resident()
    act = entrants(shape, device, compiled=True)[entrant]()
    for _ in range(3):
        act()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _most_resident() - before


def _most_resident() -> int:
    """Peak resident memory in bytes. (ru_maxrss would include that of the parent.)"""
    [size] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(size)


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step against that of transformers.")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape, for tests")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*compile.*")
    device = device_here()
    print(f"{header(args.threads, 'transformers')}, {args.rounds} rounds")
    shapes = {"smoke": SMOKE} if args.smoke else {name: SHAPES[name] for name in args.shapes}
    for name, shape in shapes.items():
        race(
            name,
            shape,
            device,
            args.rounds,
            args.threads,
            compiled=args.compile,
            memory=args.memory,
        )


if __name__ == "__main__":
    main()
