"""What this machine can do for moebench, found out by trying it.

`examine` looks at cores, memory, disks, versions and the device, and runs what moebench stands on
(the grouped experts, a product in bf16, a C++ compiler, a child process) on tiny inputs. It leaves
nothing behind. A look that fails is a finding like any other and never an exception, even where
torch does not load; so torch is imported within the looks alone.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moebench.machine import allowed_cores, control_groups, cpu_limit, lines, usable_cores, words

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from torch import Tensor

State = Literal["ok", "note", "problem"]

GIB = 2**30
LITTLE = 2 * GIB  # of memory or disk; less is worth a note
LONG = 200  # characters of an error
PATIENCE = 60  # seconds that a child process may take
CLOSE = {"fp32": 1e-4, "bf16": 2e-2}  # error of the experts, as a share of the largest value
GAIN = 1.1  # times the speed of fp32; less is no gain, since timings vary
STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}

PYTHON = shlex.quote(sys.executable)
PIP = f"{PYTHON} -m pip install"
TORCH_AGAIN = f"install torch again: {PIP} --force-reinstall torch"
WITHOUT_GPU = f"on a GPU, try run.device=cpu; else {TORCH_AGAIN}"
STAY_FP32 = "leave train.precision at fp32, its default"
COMPILER = "for it, install a C++ compiler: apt install g++ python3-dev on Debian and Ubuntu"
CHILD = "import moebench.study"  # what each job of a sweep begins with
CHILD_ALONE = f"see why: {PYTHON} -c {shlex.quote(CHILD)}"
OTHER_RUNS = "name another folder with --runs-dir"
OTHER_CACHE = "name another folder in the environment variable MOEBENCH_CACHE"


class Finding(NamedTuple):
    """One thing about this machine.

    Attributes:
        name: what was looked at.
        value: what was found.
        state: `note` if all works but could be better, `problem` if something cannot work.
        remedy: what to do about a note or a problem.
    """

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


class Look(NamedTuple):
    """How to find something out, and what it means if that raises."""

    name: str
    find: Callable[[], Iterator[Finding]]
    failed: State = "note"
    remedy: str = ""


def examine(runs_dir: Path) -> list[Finding]:
    """Look at everything that moebench needs; takes seconds.

    Args:
        runs_dir: where runs would be kept; need not exist.
    """
    found = _all(
        Look("cores", _cores),
        Look("memory", _memory),
        Look("runs", partial(_folder, "runs", runs_dir, OTHER_RUNS), "problem", OTHER_RUNS),
        Look("data cache", _data_cache, "problem", OTHER_CACHE),
        Look("versions", _versions, "note", f"{PIP} packaging"),
    )
    loaded = _all(Look("import torch", _import_torch, "problem", TORCH_AGAIN))
    found += loaded
    if exit_code(loaded) == 0:
        found += _all(
            Look("device", _device, "problem", WITHOUT_GPU),
            Look("threads", _threads),
            Look("experts in fp32", partial(_experts, "fp32"), "problem", WITHOUT_GPU),
            Look("experts in bf16", partial(_experts, "bf16"), "note", STAY_FP32),
            Look("bf16 on the CPU", _bf16_on_cpu, "note", STAY_FP32),
        )
    return found + _all(
        Look("torch.compile", _compiler, "note", COMPILER),
        Look("child process", _child, "problem", CHILD_ALONE),
    )


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


def _all(*looks: Look) -> list[Finding]:
    found: list[Finding] = []
    for look in looks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.extend(look.find())
        except Exception as error:
            value = f"does not work: {type(error).__name__}: {_brief(str(error))}"
            found.append(Finding(look.name, value, look.failed, look.remedy))
    return found


def _brief(text: str) -> str:
    """A text of many lines as one, cut where it becomes long."""
    return " ".join(text.split())[:LONG]


# The machine


def _cores() -> Iterator[Finding]:
    cores, limit = allowed_cores(), cpu_limit()
    value = f"{cores} of {os.cpu_count()}"
    if limit is not None and limit < cores:
        value += (
            f"; a control group allows the time of {limit:g}, so moebench uses {usable_cores()}"
        )
    yield Finding("cores", value)


def _memory() -> Iterator[Finding]:
    sizes = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(sizes[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for group in control_groups("memory"):
        limit = words(group / "memory.max") or words(group / "memory.limit_in_bytes")
        if limit and limit[0].isdigit() and int(limit[0]) < total:
            total = int(limit[0])
            free = min(free, total - _memory_in_use(group))
    value = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free >= LITTLE:
        yield Finding("memory", value)
        return
    less = "close other programs; set run.device_bsz to a small divisor of global_bsz"
    yield Finding("memory", value, "note", f"{less}; give a sweep --jobs 1")


def _memory_in_use(group: Path) -> int:
    """Bytes, without the file cache, which gives way when memory is needed."""
    used = words(group / "memory.current") or words(group / "memory.usage_in_bytes")
    stat = words(group / "memory.stat")
    known = dict(zip(stat[::2], stat[1::2], strict=False))
    cached = known.get("total_inactive_file") or known.get("inactive_file") or 0
    return int(used[0]) - int(cached)


def _folder(name: str, path: Path, elsewhere: str) -> Iterator[Finding]:
    """Whether a folder, or the nearest above it that is there, can be written, and its disk."""
    absolute = path.absolute()
    there = next(each for each in (absolute, *absolute.parents) if os.path.exists(each))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        value = f"{path}: cannot be written ({error.strerror})"
        yield Finding(name, value, "problem", elsewhere)
        return
    value = f"{path}: can be written, {free / GIB:.1f} GiB free"
    if free >= LITTLE:
        yield Finding(name, value)
    else:
        yield Finding(name, value, "note", f"free some space, or {elsewhere}")


def _data_cache() -> Iterator[Finding]:
    from moebench.data.corpus import cache_root

    yield from _folder("data cache", cache_root(), OTHER_CACHE)


def _versions() -> Iterator[Finding]:
    """moebench, Python and all that moebench needs, held against its own metadata."""
    import moebench

    yield Finding("moebench", moebench.__version__)
    try:
        about = metadata.metadata("moebench")
    except metadata.PackageNotFoundError:
        value = "not known, because moebench is not installed"
        yield Finding("versions", value, "note", f"in the folder of moebench: {PIP} --editable .")
        return
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    needed = SpecifierSet(about["Requires-Python"] or "")
    remedy = f"install a Python {needed}, and moebench with it"
    yield _held("python", platform.python_version(), needed, remedy)
    for each in map(Requirement, metadata.requires("moebench") or ()):
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        remedy = f"{PIP} {shlex.quote(str(each))}"
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            yield Finding(each.name, "is not installed", "problem", remedy)
        else:
            yield _held(each.name, version, each.specifier, remedy)


def _held(name: str, version: str, needed: "SpecifierSet", remedy: str) -> Finding:
    if needed.contains(version, prereleases=True):
        return Finding(name, version)
    return Finding(name, f"{version}, but moebench needs {needed}", "problem", remedy)


# With torch


def _import_torch() -> Iterator[Finding]:
    import torch

    yield Finding("import torch", f"{torch.__version__} loads")


def _device() -> Iterator[Finding]:
    """The GPU that a run takes, else the CPU, and why there is no GPU although one is there."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gpu = torch.cuda.is_available()
    if gpu:
        free, total = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        name = f"{torch.cuda.get_device_name()} (1 of {torch.cuda.device_count()})"
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        yield Finding("device", f"CUDA: {name}, {memory}, compute capability {major}.{minor}")
        return
    models = re.findall(r"^model name\s*: (.+)$", "\n".join(lines(Path("/proc/cpuinfo"))), re.M)
    model = models[0] if models else platform.machine()
    value = f"CPU: {model}, {torch.backends.cpu.get_cpu_capability()}"
    get = "install the torch for your driver that pytorch.org/get-started/locally names"
    if shutil.which("nvidia-smi") is None:
        yield Finding("device", value)
    elif torch.version.cuda is None:
        yield Finding(
            "device", f"{value}; torch is built without CUDA", "note", f"for a GPU, {get}"
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hidden = "CUDA_VISIBLE_DEVICES hides the GPU"
        yield Finding("device", f"{value}; {hidden}", "note", "for a GPU, unset that variable")
    else:
        why = _brief(str(told[0].message)) if told else "torch finds no GPU"
        remedy = f"update the driver, or {get}; run.device=cpu does without"
        yield Finding("device", f"{value}; {why}", "problem", remedy)


def _threads() -> Iterator[Finding]:
    import torch

    yield Finding("threads", f"a run takes {usable_cores()}, torch alone {torch.get_num_threads()}")


def _experts(precision: str) -> Iterator[Finding]:
    """Grouped products and their gradients against those that a plain loop in fp64 gives."""
    import torch

    from moebench.model.grouped import grouped_mm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    draw = torch.Generator().manual_seed(0)
    rows, matrices, upstream = (
        torch.randn(*shape, generator=draw).to(device, dtype)
        for shape in ((48, 32), (4, 32, 16), (48, 16))
    )
    ends = torch.tensor([16, 16, 40, 48], dtype=torch.int32, device=device)  # one group is empty

    def results(*operands: "Tensor") -> list["Tensor"]:
        *inputs, gradient = operands
        inputs = [each.clone().requires_grad_() for each in inputs]
        product = grouped_mm(inputs[0], inputs[1], ends)
        return [product, *torch.autograd.grad(product, inputs, gradient)]

    found = results(rows, matrices, upstream)
    wanted = results(rows.double(), matrices.double(), upstream.double())
    error = max(
        float((one.double() - two).abs().max() / two.abs().max())
        for one, two in zip(found, wanted, strict=True)
    )
    name = f"experts in {precision}"
    if error < CLOSE[precision]:
        yield Finding(name, f"right, forward and backward, on {device.type}")
    else:
        value = f"wrong by {error:.1g} of the largest value on {device.type}"
        yield Finding(name, value, "problem", WITHOUT_GPU)


def _bf16_on_cpu() -> Iterator[Finding]:
    """The speed of a product of the default model's size, against fp32."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, matrix = torch.ones(4096, 128, dtype=dtype), torch.ones(128, 128, dtype=dtype)
        times = timeit.repeat(partial(torch.mm, rows, matrix), number=1, repeat=20)
        seconds[dtype] = min(times)  # others disturb, and never help
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    value = f"{gain:.1f} times the speed of fp32 in a matrix product"
    if gain >= GAIN:
        yield Finding("bf16 on the CPU", value)
    else:
        yield Finding("bf16 on the CPU", f"no gain: {value}", "note", STAY_FP32)


# Other processes


def _compiler() -> Iterator[Finding]:
    """What torch.compile needs; a compilation itself would take a minute."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    include = sysconfig.get_path("include")
    done = subprocess.run(
        [*command, "-x", "c++", "-fsyntax-only", f"-I{include}", "-"],
        input="#include <Python.h>\n#include <vector>\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode == 0:
        yield Finding("torch.compile", f"not tried, but {shutil.which(command[0])} works")
    else:
        value = f"{shlex.join(command)} does not work: {_brief(done.stderr)}"
        yield Finding("torch.compile", value, "note", COMPILER)


def _child() -> Iterator[Finding]:
    """Whether a sweep can start its jobs: a process as `study.LocalLauncher` starts them."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        start_new_session=True,
    )
    if done.returncode == 0:
        yield Finding("child process", f"starts in {time.perf_counter() - began:.1f} s")
    else:
        why = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        yield Finding("child process", f"does not start: {_brief(why)}", "problem", CHILD_ALONE)
