"""What do tests of models on drives begin with? A small model, and two blank drives for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.shapes import tiny
from unit.weights.disks import PAIR, Disks
from unit.weights.models import make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of three layers."""
    return make(tmp_path / "source.gguf", tiny(layers=3))


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    """Two blank drives, PAIR."""
    disks = Disks(tmp_path / "dev")
    for serial in PAIR:
        disks.add(serial)
    return disks
