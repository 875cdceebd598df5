"""A training step against that of Hugging Face's Qwen3-MoE, on the shapes A to D.

A step is forward, loss, balance loss, backward and fused AdamW. The entrants take turns in one
process, on the same number of tokens. (Qwen3-MoE predicts one token less per sequence; this is
ignored.) The models have equally many parameters, except for the gains of the norms. On a CPU, the
script uses one thread and reports process time, with wall time beside it. Each entrant is compared
with the default of transformers (grouped_mm, SDPA, fp32) by the median of the paired ratios. An
entrant that fails is left out, with the reason. The process keeps freed memory, as the commands of
moebench do; transformers gains as well (bf16 compiled, A: 1.11, D: 1.02).

    python benchmarks/race.py [--shapes A D] [--rounds 9] [--threads 1] [--compile] [--memory]
                              [--only WORD..] [--json] [--smoke]

`--compile` adds compiled entrants, which take minutes to compile. `--only` leaves out the entrants
whose names hold none of the words, except the default of transformers. `--memory` adds the peak
memory of three steps. On a GPU, this is what torch allocates beyond the entrants before. On a CPU,
it is the increase over a separate process before the model is created. Compiled entrants are left
out there, because the compiler would count.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, SMOKE, WEIGHT, Act, Shape, moebench_step, tokens_of
from tables import Row, Tables, at_least_one, reason, show
from timing import Seconds, device_here, header, timed
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM

from moebench.machine import keep_freed_memory
from moebench.model.cpu_products import ONEDNN
from moebench.train.expert_kernels import WITH_BF16, trouble

BASE = "HF fp32"

Make = Callable[[], Act]
COLUMNS = ("entrant", "tokens/s", f"against {BASE}", "wall tokens/s", "peak MB", "note")


def by_onednn(step: Act) -> Act:
    """A step in which torch asks oneDNN for products in fp32, as a user of transformers can.

    torch does so where operands may be rounded to bf16, which oneDNN does on processors with AMX.
    """
    setting: Any = torch.backends.mkldnn.matmul  # pyright: ignore

    def call() -> object:
        before, setting.fp32_precision = setting.fp32_precision, "bf16"
        try:
            return step()
        finally:
            setting.fp32_precision = before

    return call


def transformers_step(
    shape: Shape,
    device: torch.device,
    *,
    experts: str = "grouped_mm",
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    compiled: bool = False,
) -> Act:
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
    tokens = tokens_of(shape, device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            # the loss of transformers shifts labels, so there is one target less per sequence
            loss = call(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        optimizer.step()

    return step


def entrants(shape: Shape, device: torch.device, *, compiled: bool) -> dict[str, Make]:
    """A function that builds each entrant, by the name of the entrant."""
    fp32, bf16 = torch.float32, torch.bfloat16
    hugging = partial(transformers_step, shape, device)
    own = partial(moebench_step, shape, device=device)
    found: dict[str, Make] = {
        BASE: hugging,
        "HF fp32, eager experts": partial(hugging, experts="eager"),
        "HF fp32, batched_mm": partial(hugging, experts="batched_mm"),
        "HF autocast bf16": partial(hugging, autocast=True),
        "HF autocast bf16, eager experts": partial(hugging, experts="eager", autocast=True),
        "HF bf16 parameters": partial(hugging, dtype=bf16),
        "moebench fp32": partial(own, compute=fp32),
        "moebench bf16, fp32 parameters": partial(own, compute=bf16),
    }
    if device.type == "cpu" and ONEDNN:
        found["HF fp32, products by oneDNN"] = lambda: by_onednn(hugging())
    if device.type == "cuda" and not trouble("fp32", device):
        found |= {
            "moebench fp32, Triton": partial(own, compute=fp32, triton=True),
            "moebench bf16, fp32 parameters, Triton": partial(own, compute=bf16, triton=True),
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
        name, why = "moebench bf16, fp32 parameters", no_graphs(device)
        found |= {
            f"{name}, CUDA graphs of the compiler": partial(own, compute=bf16, wrap=graphs),
            f"{name}, CUDA graph of the eager step": partial(own, compute=bf16, capture=True),
        }
        if why:
            found |= {entrant: partial(_skip, why) for entrant in found if "CUDA graph" in entrant}
    return found


def no_graphs(device: torch.device) -> str:
    """Why a step in bf16 cannot be captured on a GPU; "" if it can.

    Without a grouped kernel, torch copies the ends of the groups to the host, which a graph cannot
    hold (github.com/pytorch/pytorch/issues/169970).
    """
    major, minor = torch.cuda.get_device_capability(device)
    if major in WITH_BF16:
        return ""
    return f"torch has no grouped kernel on sm_{major}{minor}, and without it a step waits"


def _skip(why: str) -> Act:
    raise RuntimeError(f"skipped: {why}")


def race(
    name: str, makers: dict[str, Make], shape: Shape, device: torch.device, rounds: int
) -> list[dict[str, str | float | None]]:
    """A row for each entrant; None where it failed, with the reason as its note."""
    field: dict[str, Act] = {}
    rows: dict[str, dict[str, str | float | None]] = {}
    for entrant, make in makers.items():
        start = time.perf_counter()
        row = rows[entrant] = dict.fromkeys(COLUMNS)
        row["entrant"] = entrant
        try:
            field[entrant], row["peak MB"] = _warmed_up(make, device)
        except Exception as error:  # the others run on
            row["note"] = reason(error)
        ready = time.perf_counter() - start
        print(f"{name}: {entrant}, ready in {ready:.0f} s", file=sys.stderr)
    times: dict[str, list[Seconds]] = {entrant: [] for entrant in field}
    for number in range(rounds):
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
        for entrant, act in field.items():
            times[entrant].append(timed(act, device))
    for entrant, of_entrant in times.items():
        own, wall = (statistics.median(column) for column in zip(*of_entrant, strict=True))
        rows[entrant] |= {"tokens/s": shape.tokens / own, "wall tokens/s": shape.tokens / wall}
        if BASE in times:
            ratios = (a.own / b.own for a, b in zip(times[BASE], of_entrant, strict=True))
            rows[entrant][f"against {BASE}"] = statistics.median(ratios)
    return list(rows.values())


def _warmed_up(make: Make, device: torch.device) -> tuple[Act, float | None]:
    """An entrant after three steps, and the peak MB that it added on a GPU."""
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    act = make()
    for _ in range(3):  # CUDA graphs record the second call
        act()
    if device.type != "cuda":
        return act, None
    torch.cuda.synchronize()
    return act, (torch.cuda.max_memory_allocated() - before) / 1e6


def _workspaces(device: torch.device) -> None:
    """Let the libraries allocate what all entrants share."""
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(64, 64, device=device, dtype=dtype)
        torch.mm(square, square)


def peak(shape: Shape, entrant: str, threads: int) -> float | None:
    """Peak MB on a CPU, measured in a separate process; None if the compiler would count."""
    if "compiled" in entrant:
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, shape, entrant, threads).result() / 1e6


def _peak(shape: Shape, entrant: str, threads: int) -> int:
    torch.set_num_threads(threads)
    before = _most_resident()
    act = entrants(shape, torch.device("cpu"), compiled=False)[entrant]()
    for _ in range(3):
        act()
    return _most_resident() - before


def _most_resident() -> int:
    """Peak resident memory in bytes. (ru_maxrss would include that of the parent.)"""
    [size] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(size)


def chosen(makers: dict[str, Make], words: list[str]) -> dict[str, Make]:
    """The entrants whose names hold one of the words, and the one that they are compared with."""
    kept = (name for name in makers if name == BASE or any(word in name for word in words))
    return {name: makers[name] for name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step against that of transformers.")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--rounds", type=at_least_one, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape, for tests")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*compile.*")
    device = device_here()
    if not args.json:
        print(f"{header(args.threads, 'transformers')}, {args.rounds} rounds")
    shapes = {"smoke": SMOKE} if args.smoke else {name: SHAPES[name] for name in args.shapes}
    _workspaces(device)
    tables: Tables = {}
    for name, shape in shapes.items():
        if args.compile:
            torch.compiler.reset()  # else a shape after others gets code for any shape
        makers = chosen(entrants(shape, device, compiled=args.compile), args.only)
        rows = race(name, makers, shape, device, args.rounds)
        for row in rows:
            if args.memory and device.type == "cpu" and row["note"] is None:
                row["peak MB"] = peak(shape, str(row["entrant"]), args.threads)
        title = f"{name}: {shape.tokens:,} tokens per step"
        tables[title] = [_without_empty(row, rows) for row in rows]
        if not args.json:
            show({title: tables[title]}, as_json=False)
    if args.json:
        show(tables, as_json=True)


def _without_empty(row: Row, rows: list[dict[str, str | float | None]]) -> Row:
    """A row without the columns that no row fills."""
    return {key: row[key] for key in COLUMNS if any(each[key] is not None for each in rows)}


if __name__ == "__main__":
    main()
