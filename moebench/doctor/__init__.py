"""What this machine can do for moebench, found out by trying it.

`examine` checks cores, memory, disks, versions and the device, and runs what moebench stands on
(the grouped experts, a product in bf16, a C++ compiler, a child process) on tiny inputs. It leaves
nothing behind. A check that fails is a finding and never an exception, even where torch does not
load.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moebench.doctor import device
from moebench.doctor import host as machine
from moebench.doctor.finding import PIP, Check, Finding, gather

__all__ = ["Finding", "examine", "exit_code", "render"]

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def examine(runs_dir: Path) -> list[Finding]:
    """Check everything that moebench needs; takes seconds.

    Args:
        runs_dir: where runs would be kept; need not exist.
    """
    runs = partial(machine.folder, "runs", runs_dir, machine.OTHER_RUNS)
    findings = gather(
        Check("cores", machine.cores),
        Check("memory", machine.memory),
        Check("runs", runs, "problem", machine.OTHER_RUNS),
        Check("data cache", machine.data_cache, "problem", machine.OTHER_CACHE),
        Check("versions", machine.versions, "note", f"{PIP} packaging"),
    )
    loaded = gather(Check("import torch", device.import_torch, "problem", device.TORCH_AGAIN))
    findings += loaded
    if exit_code(loaded) == 0:
        fp32, bf16 = (partial(device.experts, precision) for precision in ("fp32", "bf16"))
        findings += gather(
            Check("device", device.device, "problem", device.WITHOUT_GPU),
            Check("precision", device.precision),
            Check("threads", device.threads),
            Check("experts in fp32", fp32, "problem", device.WITHOUT_GPU),
            Check("experts in bf16", bf16, "note", device.TAKE_FP32),
            Check("expert kernels", device.expert_kernels, "note", "add run.experts=torch"),
            Check("products", device.products),
            Check("bf16 on the CPU", device.bf16_on_cpu, "note", device.STAY_FP32),
        )
    findings += gather(Check("torch.compile", machine.compiler, "note", machine.COMPILER))
    started = gather(Check("child process", machine.child, "problem", machine.CHILD_ALONE))
    works = exit_code(started) == 0
    return findings + started + gather(Check("launchers", partial(machine.launchers, works)))


def render(findings: Iterable[Finding], console: Console) -> None:
    """Print the findings as a table, then what to do about those that are not ok."""
    findings = list(findings)
    table = Table(box=None, pad_edge=False)
    for column in ("what", "found", "state"):
        table.add_column(column, overflow="fold")
    for name, value, state, _ in findings:
        table.add_row(escape(name), escape(value), f"[{STYLES[state]}]{state}[/]")
    console.print(table)
    for name, _, state, remedy in findings:
        if remedy:
            words = f"[{STYLES[state]}]{state}[/]: {escape(name)}: {escape(remedy)}"
            console.print(words, soft_wrap=True, highlight=False)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if something is a problem, else 0."""
    return int(any(finding.state == "problem" for finding in findings))
