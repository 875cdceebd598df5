"""Errors that are told apart by what they say."""

import errno

import pytest

from moebench.errors import lacks_memory


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 GB"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the inner product"), False),
        (RuntimeError("mat1 and mat2 cannot be multiplied"), False),
    ],
)
def test_libraries_say_in_words_that_memory_lacks(error: Exception, lacks: bool) -> None:
    assert lacks_memory(error) is lacks
