"""How is a function driven through our own kernel module? (kmod/nvstream/nvstream.h)

The module keeps what VFIO without an IOMMU does not: memory stays pinned until the function was stopped, however the
process ended. One descriptor is all that a process without privilege needs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvdma.errors import ArenaExhausted, DmaError
from nvdma.pci.address import PciAddress, driver_of
from nvdma.pci.dma import DmaMemory, Pages, Scattered
from nvdma.pci.mmio import MappedRegisters, wait_until
from nvdma.pci.window import Window

ABI = 1
CAPS = struct.Struct("=IIQQQII24x")  # abi, flags, bar_bytes, pinned_bytes, mapped_bytes, mappings, leaked, reserved
PIN = struct.Struct("=QQII")  # address, bytes, handle, reserved
MAP_BAR = struct.Struct("=IBBBBQQII")  # domain, bus, devfn, bar, reserved, offset, bytes, handle, reserved2
MAP_DMABUF = struct.Struct("=iIQ")  # fd, handle, bytes
PAGES = struct.Struct("=QQII")  # addresses, first, count, handle
UNMAP = struct.Struct("=II")  # handle, reserved
TRANSLATED = 1 << 0
NODE_SECONDS = 10.0
MOST_PAGES_A_CALL = 1 << 20


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
    """What the module says of a function: bytes pinned and mapped for it now, mappings ever leaked by any."""

    translated: bool
    bar_bytes: int
    pinned_bytes: int
    mapped_bytes: int
    mappings: int
    leaked: int


def open_node(address: PciAddress, stack: ExitStack, folder: Path = Path("/dev/nvstream")) -> int:
    """The descriptor of a function that is bound to the module. Raises ModuleError."""
    path, driver = folder / str(address), driver_of(address)
    if driver != "nvstream":
        raise ModuleError(f"{address} is held by {driver}, not by nvstream", hint="claim it first: `nvstreamd claim`")
    wait_until(path.exists, NODE_SECONDS, f"{path} to appear")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "only root may open it, and one process at a time"
        raise ModuleError(f"{path}: {error.strerror}", hint=hint) from error
    stack.callback(os.close, fd)
    return fd


class KmodAccess:
    """A function through the module's descriptor; see nvdma.pci.access.Access."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def caps(self) -> Caps:
        """What the module says. Raises ModuleError when it speaks another version."""
        answer = self._call(GET_CAPS, bytearray(CAPS.size), "asking for its facts")
        abi, flags, *counts = CAPS.unpack(answer)
        if abi != ABI:
            raise ModuleError(f"the module nvstream speaks version {abi} of its interface, expected {ABI}",
                              hint="install module and daemon of one release: `dkms status nvstream`")
        return Caps(bool(flags & TRANSLATED), *counts)

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """See Access."""
        request = bytearray(PIN.pack(address, view.nbytes, 0, 0))
        handle = PIN.unpack(self._call(PIN_MEMORY, request, f"pinning {view.nbytes} bytes"))[2]
        own = view[:]
        stack.callback(self._unmap, handle, own)
        return DmaMemory(own, address, Scattered(self._pages(handle, view.nbytes)))

    def map_window(self, window: Window, stack: ExitStack) -> Scattered:
        """The function's addresses of a peer's memory; nothing of it is mapped into this process."""
        peer = window.peer
        request = bytearray(MAP_BAR.pack(peer.domain, peer.bus, peer.device << 3 | peer.function, window.bar, 0,
                                         window.offset, window.nbytes, 0, 0))
        what = f"mapping {window.nbytes} bytes of BAR {window.bar} of {peer}"
        handle = MAP_BAR.unpack(self._call(MAP_PEER, request, what))[7]
        stack.callback(self._unmap, handle, None)
        return Scattered(self._pages(handle, window.nbytes))

    def map_dmabuf(self, fd: int, stack: ExitStack) -> Scattered:
        """The function's addresses of memory that another driver exports as a dma-buf."""
        request = bytearray(MAP_DMABUF.pack(fd, 0, 0))
        _, handle, nbytes = MAP_DMABUF.unpack(self._call(MAP_EXPORTED, request, "mapping a dma-buf"))
        stack.callback(self._unmap, handle, None)
        return Scattered(self._pages(handle, nbytes))

    def map_registers(self, stack: ExitStack) -> MappedRegisters:
        """See Access."""
        nbytes = self.caps().bar_bytes
        mapping = mmap.mmap(self.fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        stack.callback(mapping.close)
        return MappedRegisters(ctypes.addressof(ctypes.c_char.from_buffer(mapping)), nbytes)

    def enable_bus_master(self, stack: ExitStack) -> None:
        """See Access."""
        self._call(SET_MASTER, bytearray(), "letting it read and write memory")
        stack.callback(self.reset)

    def reset(self) -> None:
        """See Access: the module disables the controller and clears its bus mastering."""
        self._call(QUIESCE, bytearray(), "stopping it")

    def _pages(self, handle: int, nbytes: int) -> Pages:
        addresses = np.zeros(nbytes // mmap.PAGESIZE, np.uint64)
        for first in range(0, len(addresses), MOST_PAGES_A_CALL):
            part = addresses[first : first + MOST_PAGES_A_CALL]
            request = bytearray(PAGES.pack(part.ctypes.data, first, len(part), handle))
            self._call(GET_PAGES, request, "asking for bus addresses")
        return addresses

    def _unmap(self, handle: int, view: memoryview | None) -> None:
        self._call(UNMAP_HANDLE, bytearray(UNMAP.pack(handle, 0)), "unmapping")
        if view is not None:
            view.release()

    def _call(self, number: int, argument: bytearray, what: str) -> bytearray:
        try:
            fcntl.ioctl(self.fd, number, argument if argument else 0)
        except OSError as error:
            if error.errno == errno.ENOMEM and number == PIN_MEMORY:
                raise ArenaExhausted(f"{what} for the device failed: {error.strerror}",
                                     hint="raise RLIMIT_MEMLOCK (LimitMEMLOCK= in systemd)") from error
            raise ModuleError(f"{what} failed: {error.strerror}") from error
        return argument
