"""Where may tests of the hardware side run? On the host they boot guests; those of `guest*/` run inside one."""

from __future__ import annotations

import compileall
import os
from pathlib import Path

import pytest

from vm import lab

IN_GUEST = "NVSTREAMD_GUEST" in os.environ
collect_ignore = [] if IN_GUEST else ["guest", "guest_iommufd"]


@pytest.fixture(scope="session", autouse=not IN_GUEST)
def compiled() -> None:
    """Guests see our sources, and cannot keep what they compile: every process there would do it anew, for seconds."""
    for folder in ("clients/python", "daemon", "dma", "tests"):
        compileall.compile_dir(lab.ROOT / folder, quiet=1)


@pytest.fixture
def guest_folder(tmp_path: Path) -> Path:
    """Where a guest's images and results lie. Skips, loudly, where no guest can be booted."""
    reason = lab.missing()
    if reason:
        pytest.skip(f"NOT TESTED: the hardware side, in a QEMU guest: {reason}")
    return tmp_path
