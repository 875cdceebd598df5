"""Blocks as text: a grid that is too wide goes on below itself."""

from moebench.report.show.blocks import Grid
from moebench.report.show.formats import as_text


def test_a_wide_grid_goes_on_below_and_repeats_no_row_without_a_number() -> None:
    headers = ["arm", *(f"column{i}" for i in range(6))]
    whole = [("micro", ""), *((f"1234567{i}", "") for i in range(6))]
    only_first = [("random", ""), ("12345678", ""), *(("", "") for _ in range(5))]
    text = as_text([Grid("Title", "Caption", headers, [whole, only_first])], 40)
    first, second, *_ = text.split("\n\n")
    assert first.split()[:3] == ["Title", "arm", "column0"]
    assert "random" in first
    assert "random" not in second
    assert second.split()[0] == "arm"
    assert all(f"1234567{i}" in text for i in range(6))
    assert max(map(len, text.splitlines())) <= 40
