"""Which backends does the shared suite run over? Each kind of the rig, on a real file system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from unit.nvdma.rig import FILE_KINDS, KINDS, Rig


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A rig of each kind."""
    with ExitStack() as stack:
        yield Rig(request.param, tmp_path, stack)


@pytest.fixture(params=FILE_KINDS)
def file_rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A rig of each kind that reads files."""
    with ExitStack() as stack:
        yield Rig(request.param, tmp_path, stack)


@pytest.fixture
def uring_rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig of the kind 'uring'."""
    with ExitStack() as stack:
        yield Rig("uring", tmp_path, stack)


@pytest.fixture
def memory_rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig of the kind 'memory'."""
    with ExitStack() as stack:
        yield Rig("memory", tmp_path, stack)
