"""What is said about a machine: what it lacks, what does not work, and what to do about it."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from moebench.doctor import Finding, device, examine, exit_code, render
from moebench.doctor import host as machine
from moebench.doctor.finding import Check, gather
from moebench.model import grouped
from moebench.train import expert_kernels, precision_gain, products

Patch = pytest.MonkeyPatch
Groups = Callable[[str, dict[str, str]], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def findings(place: Path) -> dict[str, Finding]:
    """What is found here, by name."""
    found = examine(place / "new" / "runs")
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def only(*checks: Check) -> Finding:
    (found,) = gather(*checks)
    return found


def test_this_machine_can_train_and_is_left_as_it_was(
    findings: dict[str, Finding], place: Path
) -> None:
    assert {"cores", "memory", "runs", "data cache", "python", "device", "threads"} <= set(findings)
    assert findings["experts in fp32"].value.startswith("right, forward and backward")
    assert findings["products"].state == "ok"
    assert findings["child process"].state == "ok"
    assert findings["launchers"].value.startswith("local works; ")
    assert findings["torch"].value == metadata.version("torch")
    assert "can be written" in findings["runs"].value
    assert list(place.iterdir()) == []


def test_whatever_is_no_ok_has_a_remedy(findings: dict[str, Finding]) -> None:
    assert all((finding.state == "ok") == (not finding.remedy) for finding in findings.values())


def test_everything_that_moebench_needs_is_held_against_its_range(
    findings: dict[str, Finding],
) -> None:
    needed = [line for line in metadata.requires("moebench") or () if "extra ==" not in line]
    assert needed
    names = [line.partition(">=")[0].partition("<")[0] for line in needed]
    assert {findings[name].state for name in names} == {"ok"}


def test_a_version_outside_its_range_is_a_problem_with_the_command(monkeypatch: Patch) -> None:
    needs = ["numpy<1,>=0.5", "no-such-thing>=2", "pytest>=999; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    found = {finding.name: finding for finding in gather(Check("versions", machine.versions))}
    assert set(found) == {"moebench", "python", "numpy", "no-such-thing"}
    assert found["numpy"].state == "problem"
    assert found["numpy"].value == f"{metadata.version('numpy')}, but moebench needs <1,>=0.5"
    assert found["numpy"].remedy.endswith("-m pip install 'numpy<1,>=0.5'")
    assert found["no-such-thing"].value == "is not installed"
    assert found["python"].state == "ok"


def test_only_problems_fail() -> None:
    fine, note = Finding("a", "b"), Finding("a", "b", "note", "c")
    assert exit_code([fine, note]) == 0
    assert exit_code([fine, Finding("a", "b", "problem", "c"), note]) == 1


def test_findings_are_text_and_not_markup() -> None:
    console = Console(width=80, file=io.StringIO())
    odd = Finding("x[/foo]", "[red]y", "problem", "do [z]")
    render([odd, Finding("fine", "v")], console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "x[/foo]" in text
    assert "[red]y" in text
    assert "problem: x[/foo]: do [z]" in text
    assert "ok: fine" not in text


# What may be wrong


def test_torch_that_does_not_load_is_one_problem(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(machine, "CHILD", "pass")
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert [one.name for one in found.values() if one.state == "problem"] == ["import torch"]
    assert "pip install --force-reinstall torch" in found["import torch"].remedy
    assert "experts in fp32" not in found
    assert "child process" in found


def test_wrong_experts_are_found_out(monkeypatch: Patch) -> None:
    right = grouped.grouped_mm

    def careless(rows: Any, matrices: Any, ends: Any) -> Any:
        """Forgets the last group, but not in the fp64 that it is held against."""
        product = right(rows, matrices, ends)
        known = torch.arange(len(rows)) < (ends[-1] if rows.dtype == torch.float64 else ends[-2])
        return product * known[:, None]

    monkeypatch.setattr(grouped, "grouped_mm", careless)
    found = only(Check("experts", lambda: device.experts("fp32")))
    assert found.state == "problem"
    assert found.value.startswith("wrong by 1 of the largest value")


def test_the_kernels_of_experts_are_named_and_tried(
    findings: dict[str, Finding], monkeypatch: Patch
) -> None:
    found = findings["expert kernels"]
    assert found.value.startswith("run.experts=auto means ")
    assert found.state == "ok" or "run.experts=triton" in found.remedy
    monkeypatch.setattr(expert_kernels, "trouble", lambda precision, device: "")
    monkeypatch.setattr(device, "_error_of_triton", lambda device: 0.5)
    found = only(Check("it", device.expert_kernels))
    assert found.value.endswith("those in Triton are wrong by 0.5 of the largest value")
    assert (found.state, found.remedy) == ("problem", "add run.experts=torch")


def test_a_look_that_raises_is_a_finding(monkeypatch: Patch) -> None:
    def broken(*operands: Any) -> Any:
        raise NotImplementedError("no kernel\nfor this device")

    monkeypatch.setattr(grouped, "grouped_mm", broken)
    found = only(Check("it", lambda: device.experts("bf16"), "note", "leave it"))
    words = "does not work: NotImplementedError: no kernel for this device"
    assert found == Finding("it", words, "note", "leave it")


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([], "to the bit; bits depend on shape in: none"),
        (
            ["rows", "groups"],
            f"to the bit; bits depend on shape in: rows ({products.KINDS['rows']}), groups "
            f"({products.KINDS['groups']})",
        ),
        (
            ["stacks"],
            f"but for rounding; bits depend on shape in: stacks ({products.KINDS['stacks']})",
        ),
    ],
)
def test_whether_bits_depend_on_shapes_is_said(
    monkeypatch: Patch, kinds: list[str], words: str
) -> None:
    monkeypatch.setattr(products, "shape_dependent", lambda shapes, device, *, fused: kinds)
    found = only(Check("products", device.products))
    assert found.value.endswith(words)


@pytest.mark.parametrize(
    ("gain", "state", "words"),
    [(0.5, "note", "no gain: 0.5 times the speed"), (1.5, "ok", "1.5 times the speed of fp32")],
)
def test_the_gain_of_bf16_is_said(monkeypatch: Patch, gain: float, state: str, words: str) -> None:
    monkeypatch.setattr(precision_gain, "bf16_gain", lambda: gain)
    found = only(Check("it", device.bf16_on_cpu))
    assert found.state == state
    assert found.value.startswith(words)


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = only(
        Check("it", lambda: machine.folder("it", tmp_path / "file" / "runs", "go elsewhere"))
    )
    assert (found.state, found.remedy) == ("problem", "go elsewhere")
    assert found.value.endswith("file/runs: cannot be written (Not a directory)")


def test_a_disk_that_is_nearly_full_is_noted(monkeypatch: Patch, tmp_path: Path) -> None:
    class Usage:
        free = 2**30

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage)
    found = only(Check("it", lambda: machine.folder("it", tmp_path, "go elsewhere")))
    assert found.state == "note"
    assert found.value.endswith("1.0 GiB free")


def test_without_a_compiler_only_compiling_is_missed(monkeypatch: Patch) -> None:
    for command in ("/no/such/compiler", "false"):
        monkeypatch.setenv("CXX", command)
        found = only(Check("it", machine.compiler, "note", machine.COMPILER))
        assert (found.state, found.remedy) == ("note", machine.COMPILER)


def test_a_child_process_that_fails_says_why(monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine, "CHILD", "import no_such_module")
    found = only(Check("it", machine.child))
    assert found.state == "problem"
    assert "No module named 'no_such_module'" in found.value


def test_the_launcher_that_works_is_told_from_those_that_are_only_there(
    monkeypatch: Patch,
) -> None:
    there = {"submitit": "1.5.4"}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(metadata, "version", version)
    others = "commands works; submitit 1.5.4, ray not installed"
    found = only(Check("it", lambda: machine.launchers(True)))
    assert found == Finding("launchers", f"local works; {others}")
    found = only(Check("it", lambda: machine.launchers(False)))
    assert found.state == "problem"
    assert found.value == f"local does not work, for want of a child process; {others}"


def test_without_a_child_process_no_launcher_works(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # quicker
    monkeypatch.setattr(machine, "CHILD", "import no_such_module")
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert found["launchers"].state == "problem"
    assert found["launchers"].value.startswith("local does not work")


# Control groups


def test_a_limit_below_the_cores_is_said(groups: Groups) -> None:
    groups("0::/\n", {"cpu.max": "90000 100000"})
    found = only(Check("cores", machine.cores))
    assert found.state == "ok"
    assert found.value.endswith("a control group allows the time of 0.9, so moebench uses 1")
    groups("0::/\n", {"cpu.max": f"{os.cpu_count()}00000 100000"})
    assert "control group" not in only(Check("cores", machine.cores)).value


@pytest.mark.parametrize(
    ("own", "folder", "limit", "used", "cached"),
    [
        ("0::/\n", "", "memory.max", "memory.current", "inactive_file"),
        (
            *("4:memory:/\n", "memory/", "memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
    ],
)
def test_memory_is_that_of_the_control_group_less_what_is_used(
    groups: Groups, own: str, folder: str, limit: str, used: str, cached: str
) -> None:
    mib = 2**20
    files = {limit: 512 * mib, used: 384 * mib, "memory.stat": f"anon 1\n{cached} {128 * mib}\n"}
    groups(own, {folder + name: str(text) for name, text in files.items()})
    found = only(Check("memory", machine.memory))
    assert (found.value, found.state) == ("0.2 of 0.5 GiB free", "note")


# Devices


def found_device(monkeypatch: Patch, **about: Any) -> Finding:
    for name, value in about.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    return only(Check("device", device.device))


def test_a_gpu_is_named(monkeypatch: Patch) -> None:
    found = found_device(
        monkeypatch,
        is_available=True,
        mem_get_info=(3 * 2**29, 2**31),
        get_device_capability=(9, 0),
        get_device_name="H200",
        device_count=2,
    )
    assert found == Finding(
        "device", "CUDA: H200 (1 of 2), 1.5 of 2.0 GiB free, compute capability 9.0"
    )


@pytest.mark.parametrize(
    ("built_for", "visible", "state", "words"),
    [
        (None, None, "note", "built without CUDA"),
        ("12.8", "", "note", "CUDA_VISIBLE_DEVICES hides"),
        ("12.8", None, "problem", "torch finds no GPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_said(
    monkeypatch: Patch, built_for: str | None, visible: str | None, state: str, words: str
) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = found_device(monkeypatch, is_available=False)
    assert found.state == state
    assert found.value.startswith("CPU: ")
    assert words in found.value


def test_without_a_gpu_the_cpu_is_fine(monkeypatch: Patch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert found_device(monkeypatch, is_available=False).state == "ok"


def test_torch_is_not_loaded_before_it_is_looked_at() -> None:
    code = "import sys, moebench.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
