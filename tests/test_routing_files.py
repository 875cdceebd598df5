"""Routing files that are broken, or hold what is no array of numbers, are named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moebench.errors import RecordError
from moebench.records import Record


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_broken_routing_is_named_and_never_loaded_as_something_else(
    tmp_path: Path, data: st.DataObject
) -> None:
    record = Record(tmp_path / "run")
    probe = np.zeros((3, 2, 2, 1), np.int16)
    arrays = {"counts": np.arange(60).reshape(3, 4, 5), "probe_index": probe}
    record.save_routing(1, arrays)
    path = record.path / "routing" / "step-1.npz"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    arrays_read, message = {}, f"{path}: cannot be read ("
    try:
        arrays_read = record.routing(1)
    except RecordError as error:
        message = str(error)
    assert message.startswith(f"{path}: cannot be read (")
    assert all(isinstance(each, np.ndarray) for each in arrays_read.values())


def test_routing_runs_no_pickle(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.save_routing(0, {"counts": np.zeros((1, 1, 1), int)})
    path = record.path / "routing" / "step-0.npz"
    np.savez(path, counts=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RecordError, match=r"step-0\.npz: cannot be read \(counts\.npy: holds"):
        record.routing(0)
    np.save(path.with_suffix(".npy"), np.zeros(1))
    path.with_suffix(".npy").rename(path)
    with pytest.raises(RecordError, match=r"step-0\.npz: cannot be read"):
        record.routing(0)
