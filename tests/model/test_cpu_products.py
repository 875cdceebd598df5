"""Where oneDNN multiplies in fp32 on a CPU."""

from pathlib import Path

import pytest
import torch

from moebench.model import cpu_products

AMD, INTEL = "vendor_id : AuthenticAMD\n", "vendor_id : GenuineIntel\n"


@pytest.mark.parametrize(
    ("cpus", "capability", "variables", "expected"),
    [
        (AMD, "AVX512", {}, True),
        (AMD, "AVX2", {}, False),
        (AMD, "AVX512", {"MKL_CBWR": "COMPATIBLE"}, False),
        (INTEL, "AVX512", {}, False),
        ("", "AVX512", {}, False),
    ],
)
def test_mkl_stays_where_it_is_as_fast_or_the_user_sets_it_up(
    cpus: str,
    capability: str,
    variables: dict[str, str],
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(cpus)
    monkeypatch.setattr(cpu_products, "CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cpu_products.suits() is expected
