"""Batched products in fp32 by oneDNN: where they are allowed, and that they are exact."""

from pathlib import Path

import pytest
import torch

from moebench.model import cpu_products
from moebench.model.cpu_products import EXACT, batched_by_onednn, suits

SETTING = torch.backends.mkldnn.matmul  # pyright: ignore


def test_products_are_exact_in_fp32_and_the_setting_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "amx_bf16" in Path("/proc/cpuinfo").read_text():
        pytest.skip("oneDNN rounds operands to bf16 here")
    monkeypatch.setattr(cpu_products, "suits", lambda: True)
    torch.manual_seed(0)
    before = SETTING.fp32_precision
    one, other = torch.randn(3, 96, 80), torch.randn(3, 80, 112)
    with batched_by_onednn():
        assert SETTING.fp32_precision == "bf16"
        found = one @ other
    exact = one.double() @ other.double()
    assert (found - exact).norm() < EXACT * exact.norm()
    with pytest.raises(ZeroDivisionError), batched_by_onednn():
        raise ZeroDivisionError
    assert SETTING.fp32_precision == before


@pytest.mark.parametrize(
    ("cpuinfo", "variables", "capability"),
    [
        ("vendor_id : GenuineIntel\n", {}, "AVX512"),
        ("vendor_id : AuthenticAMD\n", {"MKL_CBWR": "COMPATIBLE"}, "AVX512"),
        ("vendor_id : AuthenticAMD\n", {}, "AVX2"),
        ("", {}, "AVX512"),
    ],
)
def test_mkl_stays_where_it_is_fast_or_the_user_sets_it_up(
    cpuinfo: str,
    variables: dict[str, str],
    capability: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(cpu_products, "CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not suits.__wrapped__()
    before = SETTING.fp32_precision
    monkeypatch.setattr(cpu_products, "suits", suits.__wrapped__)
    with batched_by_onednn():
        assert SETTING.fp32_precision == before


def test_a_processor_that_rounds_operands_keeps_mkl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("vendor_id : AuthenticAMD\n")
    monkeypatch.setattr(cpu_products, "CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr(cpu_products, "EXACT", 0.0)
    assert not suits.__wrapped__()
