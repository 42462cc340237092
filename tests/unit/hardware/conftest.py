"""Where do the simulated machines lie? Thousands of small files each: in memory, where there is a tmpfs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory of the test's own, gone behind it: none of these files is worth a look after a failure."""
    home = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="nvstreamd-test-", dir=home) as path:
        yield Path(path)
