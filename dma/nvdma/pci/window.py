"""Which part of another function's BAR may a drive reach, and how does a process without privilege come by it?

Through the function's resource file (Documentation/PCI/sysfs-pci.rst), which root opens and whose descriptor it passes
on. Nothing here reads or writes the memory behind it: a mapping only tells the kernel which pages are meant.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvdma.errors import DmaError
from nvdma.pci.address import PciAddress
from nvdma.pci.vfio_calls import COMMAND_OFFSET, MEMORY_SPACE

BARS = range(6)
DEVICES = Path("/sys/bus/pci/devices")
OUR_MODULE = "reach it through our module nvstream instead"
# mmap(2)'s answers that a remedy is known for: drivers/pci/pci-sysfs.c refuses what a driver has for itself under
# CONFIG_IO_STRICT_DEVMEM, and kernel_lockdown(7) refuses all.
REMEDIES = {
    errno.EINVAL: f"its driver has it for itself: add iomem=relaxed to the kernel's command line, or {OUR_MODULE}",
    errno.EPERM: f"the kernel is locked down (kernel_lockdown(7)): switch Secure Boot off, or {OUR_MODULE}",
}


class WindowRefused(DmaError):
    """A part of a BAR cannot be reached, or is none."""

    hint = "look for the function's BARs in `lspci -vv`"


@dataclass(frozen=True, slots=True)
class Window:
    """`nbytes` from byte `offset` on of a BAR of another function."""

    peer: PciAddress
    bar: int
    offset: int
    nbytes: int


def open_bar(peer: PciAddress, bar: int, stack: ExitStack, devices: Path = DEVICES) -> int:
    """A descriptor of the whole BAR, for `map_window`; only root may. `stack` closes it. Raises WindowRefused.

    Whoever gets it can read and write all of the BAR.
    """
    if bar not in BARS:
        raise WindowRefused(f"{peer} has no BAR {bar}")
    folder = devices / str(peer)
    _check_answers(folder, peer)
    # The kernel gives a page one kind of mapping (Documentation/arch/x86/pat.rst): write-combining as the driver's own
    # are, so that those stay as fast as they were.
    combining, plain = folder / f"resource{bar}_wc", folder / f"resource{bar}"
    try:
        fd = os.open(combining if combining.exists() else plain, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise WindowRefused(f"BAR {bar} of {peer} cannot be opened: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def map_window(window: Window, fd: int, stack: ExitStack) -> int:
    """The virtual address of `window` in the BAR of descriptor `fd`; `stack` unmaps it. Raises WindowRefused.

    Not a byte may be touched there. Devices that were shown these pages must have lost them before the unmapping.
    """
    what = f"bytes {window.offset} to {window.offset + window.nbytes} of BAR {window.bar} of {window.peer}"
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise WindowRefused(f"{what}: the descriptor is no resource file")
    if window.offset < 0 or window.nbytes <= 0 or window.offset + window.nbytes > found.st_size:
        raise WindowRefused(f"{what} are not inside its {found.st_size} bytes")
    if window.offset % mmap.PAGESIZE or window.nbytes % mmap.PAGESIZE:
        raise WindowRefused(f"{what} are not whole pages of {mmap.PAGESIZE} bytes")
    try:
        mapping = mmap.mmap(fd, window.nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=window.offset)
    except OSError as error:
        raise WindowRefused(f"{what} cannot be mapped: {error.strerror}",
                            hint=REMEDIES.get(error.errno or 0, WindowRefused.hint)) from error
    stack.callback(mapping.close)
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def _check_answers(folder: Path, peer: PciAddress) -> None:
    """A function whose memory space is off drops what is written to it, and nobody is told."""
    try:
        with (folder / "config").open("rb") as config:
            command = config.read(COMMAND_OFFSET + 2)[COMMAND_OFFSET:]
    except OSError as error:
        raise WindowRefused(f"{peer} cannot be asked: {error.strerror}", hint="is it still there? `lspci`") from error
    if len(command) != 2 or not struct.unpack("<H", command)[0] & MEMORY_SPACE:
        raise WindowRefused(f"{peer} does not answer to its BARs", hint="load its driver first")
