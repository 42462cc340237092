"""How are the modules loaded and asked that stand in for hardware in tests? (kmod/lab)"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vm.lab import LAB

NVSTREAM = LAB / "nvstream/nvstream.ko"
LABBAR, LABSTUCK = LAB / "lab/labbar.ko", LAB / "lab/labstuck.ko"
# kmod/lab/labbar.h
EXPORT = struct.Struct("=QQQ")  # offset, bytes, size
EXPORT_PART = 1 << 30 | EXPORT.size << 16 | 0xB8 << 8


def missing() -> bool:
    """Whether the modules could not be built."""
    return not (NVSTREAM.exists() and LABBAR.exists() and LABSTUCK.exists())


@contextmanager
def loaded(module: Path, *parameters: str) -> Iterator[None]:
    """Loads a module, and removes it."""
    subprocess.run(["insmod", module, *parameters], check=True)
    yield
    subprocess.run(["rmmod", module.stem], check=True)


def export(offset: int, nbytes: int, stack: ExitStack, *, size: int | None = None) -> int:
    """The descriptor of a dma-buf of a part of the BAR, which says that it is `size` bytes long."""
    with open("/dev/labbar", "rb", buffering=0) as device:
        # Only a buffer that may change lets the call answer with a number.
        wanted = bytearray(EXPORT.pack(offset, nbytes, nbytes if size is None else size))
        fd: int = fcntl.ioctl(device, EXPORT_PART, wanted)
    stack.callback(os.close, fd)
    return fd


def counts() -> tuple[int, int, int]:
    """dma-bufs that are not released, times that they are pinned, times that they are mapped."""
    found = [int((Path("/sys/module/labbar/parameters") / name).read_text())
             for name in ("exported", "pinned", "mapped")]
    return found[0], found[1], found[2]
