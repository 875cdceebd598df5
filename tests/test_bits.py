"""Bits: what is equal to the bit, where the bits of a product do not depend on its shape."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from moebench.model.transformer import MoETransformer
from moebench.train import products
from moebench.train.products import KINDS, shape_dependent, shapes_of
from tests.processors import SHAPE_INDEPENDENT, PretendedProcessor

TESTS = Path(__file__).parent


def make(compute: torch.dtype) -> MoETransformer:
    """A small model; its weights do not matter here."""
    return MoETransformer(
        vocab_size=64,
        d_model=32,
        num_layers=1,
        num_heads=2,
        num_experts=8,
        top_k=2,
        expert_dim=32,
        compute=compute,
    )


def test_what_is_claimed_to_the_bit_is_so(tmp_path: Path) -> None:
    """In a process of its own: MKL reads its settings once."""
    files = [str(each) for each in TESTS.rglob("test_*.py") if "same: Same" in each.read_text()]
    words = [sys.executable, "-m", "pytest", "--bits", "--quiet", "-p", "no:cacheprovider"]
    report = tmp_path / "report.xml"
    child = subprocess.run(
        [*words, f"--basetemp={tmp_path / 'bits'}", f"--junitxml={report}", *files],
        env={**os.environ, **SHAPE_INDEPENDENT},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [each.attrib["message"] for case in cases for each in case.iter("skipped")]
    assert len({case.attrib["classname"] for case in cases}) == len(files) - 1  # but this file
    if skipped:
        reasons = ", ".join(f"{number}: {why}" for why, number in Counter(skipped).items())
        pytest.skip(f"{len(cases) - len(skipped)} of {len(cases)} hold to the bit; {reasons}")


def test_the_pretended_processor_rounds_by_shape() -> None:
    """Otherwise the tests that pass on it would show nothing."""
    draw = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        with PretendedProcessor():
            assert shape_dependent(shapes_of(make(dtype), 8, 32)) == list(KINDS)
        left = torch.randn(64, 32, generator=draw, dtype=dtype)
        right = torch.randn(32, 32, generator=draw, dtype=dtype)
        usual = left @ right
        with PretendedProcessor():
            several = torch.bmm(left[None], right[None])[0]
            few = left[:3] @ right
        assert not torch.equal(several, usual)
        assert not torch.equal(few, usual[:3])
        assert (several - usual).norm() <= 4 * torch.finfo(dtype).eps * usual.norm()


def test_exact_products_do_not_depend_on_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of small whole numbers are exact, in whatever order they are summed."""

    def whole(*shape: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    monkeypatch.setattr(torch, "randn", whole)
    monkeypatch.setattr(products, "causal_attention", lambda q, k, v: q @ k.mT @ v)
    assert shape_dependent(shapes_of(make(torch.float64), 8, 32)) == []
