"""How does a test meet a full disk? On a file system of a few pages, which only root can mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.getuid() != 0,
                                reason="NOT TESTED: a full disk; only root mounts a small one: run as root too")


@contextmanager
def small_disk(disk: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at `disk`."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
