"""Does splitting a read keep every byte?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdma.types import Read, split


@given(st.integers(0, 1 << 50), st.integers(1, 300), st.integers(0, 1 << 40), st.integers(1, 400))
def test_the_parts_are_the_whole(offset: int, length: int, target: int, max_read: int) -> None:
    parts = split(Read(3, 1, offset, length, target), max_read)
    at = 0
    for number, part in enumerate(parts):
        assert part == Read(3 + number, 1, offset + at, part.length, target + at)
        assert 0 < part.length <= max_read
        at += part.length
    assert at == length


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_read is 0"):
        split(Read(1, 0, 0, 10, 0), 0)
