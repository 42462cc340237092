"""How does a stock kernel reach a root file system on a virtio disk? By an initial RAM disk of six modules and busybox.

The format is the kernel's "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

DISK = "/dev/vda"
# ext4 names crc32c to the kernel's crypto interface, not to depmod.
WANTED = ("crc32c_generic", "virtio_pci", "virtio_blk", "ext4")
DIRECTORY, PROGRAM, FILE = 0o40755, 0o100755, 0o100644


def archive(root: Path) -> bytes:
    """The archive for the kernel whose modules are below `root`/lib/modules."""
    (modules,) = (root / "lib/modules").iterdir()
    order = _in_order(modules, WANTED)
    busybox = shutil.which("busybox")
    assert busybox is not None
    entries = [*((name, DIRECTORY, b"") for name in ("bin", "dev", "root")),
               ("bin/busybox", PROGRAM, Path(busybox).read_bytes()),
               ("init", PROGRAM, _script(order).encode()),
               *((path.name, FILE, path.read_bytes()) for path in order),
               ("TRAILER!!!", 0, b"")]
    numbers = itertools.count(1)
    return b"".join(_entry(next(numbers), *entry) for entry in entries)


def _script(modules: Sequence[Path]) -> str:
    """When a command fails the kernel panics, and the host sees why."""
    lines = ["#!/bin/busybox sh", "set -e", "/bin/busybox mount -t devtmpfs dev /dev",
             *(f"/bin/busybox insmod /{path.name}" for path in modules),
             f"/bin/busybox mount -t ext4 {DISK} /root", "exec /bin/busybox switch_root /root /sbin/init"]
    return "\n".join(lines) + "\n"


def _in_order(modules: Path, wanted: Sequence[str]) -> list[Path]:
    """Files of modules, each behind those that it needs (modules.dep of depmod(8) lists the deepest last)."""
    needed: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, more = line.partition(":")
        needed[Path(path).stem.replace("-", "_")] = [*reversed(more.split()), path]
    return list(dict.fromkeys(modules / path for name in wanted for path in needed[name]))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    text = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(text), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return b"".join(_padded((header + text, content)))


def _padded(pieces: Sequence[bytes]) -> Iterator[bytes]:
    return (piece + b"\0" * (-len(piece) % 4) for piece in pieces)
