"""Which calls does our kernel module understand? (kmod/nvstream/nvstream.h) Imports as in vfio_calls."""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass

from nvdma.errors import DmaError

ABI = 1
CAPS = struct.Struct("=IIQQQII24x")  # abi, flags, bar_bytes, pinned_bytes, mapped_bytes, mappings, leaked, reserved
PIN = struct.Struct("=QQII")  # address, bytes, handle, reserved
MAP_BAR = struct.Struct("=IBBBBQQII")  # domain, bus, devfn, bar, reserved, offset, bytes, handle, reserved2
MAP_DMABUF = struct.Struct("=iIQ")  # fd, handle, bytes
PAGES = struct.Struct("=QQII")  # addresses, first, count, handle
UNMAP = struct.Struct("=II")  # handle, reserved
TRANSLATED = 1 << 0


def _number(direction: int, number: int, nbytes: int) -> int:
    """The number of an ioctl (asm-generic/ioctl.h)."""
    return direction << 30 | nbytes << 16 | 0xB7 << 8 | number


GET_CAPS = _number(2, 0, CAPS.size)
PIN_MEMORY = _number(3, 1, PIN.size)
MAP_PEER = _number(3, 2, MAP_BAR.size)
MAP_EXPORTED = _number(3, 3, MAP_DMABUF.size)
GET_PAGES = _number(1, 4, PAGES.size)
UNMAP_HANDLE = _number(1, 5, UNMAP.size)
SET_MASTER = _number(0, 6, 0)
QUIESCE = _number(0, 7, 0)


class ModuleError(DmaError):
    """The module nvstream refused a call."""

    hint = "look for `nvstream` in `dmesg`"


@dataclass(frozen=True, slots=True)
class Caps:
    """The module's facts of a function: bytes pinned and mapped for it now, mappings ever leaked by any."""

    translated: bool
    bar_bytes: int
    pinned_bytes: int
    mapped_bytes: int
    mappings: int
    leaked: int


def call(fd: int, number: int, argument: bytearray, what: str) -> bytearray:
    """An ioctl(2); what the module answers is in `argument`. Raises ModuleError with `what`, caused by the OSError."""
    try:
        fcntl.ioctl(fd, number, argument if argument else 0)
    except OSError as error:
        raise ModuleError(f"{what} failed: {error.strerror}") from error
    return argument


def caps_of(fd: int) -> Caps:
    """The module's facts of a function. Raises ModuleError, also when it speaks another version."""
    abi, flags, *counts = CAPS.unpack(call(fd, GET_CAPS, bytearray(CAPS.size), "asking for its facts"))
    if abi != ABI:
        raise ModuleError(f"the module nvstream speaks version {abi} of its interface, expected {ABI}",
                          hint="install module and daemon of one release: `dkms status nvstream`")
    return Caps(bool(flags & TRANSLATED), *counts)
