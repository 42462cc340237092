"""How is a function driven through our own kernel module? (kmod/nvstream/nvstream.h)

The module keeps what VFIO without an IOMMU does not: memory stays pinned until the function was stopped, however the
process ended. One descriptor, from nvdma.pci.kmod_open, is all that a process without privilege needs.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from contextlib import ExitStack

import numpy as np

from nvdma.errors import ArenaExhausted
from nvdma.pci.dma import DmaMemory, Pages, Scattered
from nvdma.pci.kmod_calls import (
    GET_PAGES,
    MAP_BAR,
    MAP_DMABUF,
    MAP_EXPORTED,
    MAP_PEER,
    PAGES,
    PIN,
    PIN_MEMORY,
    QUIESCE,
    SET_MASTER,
    UNMAP,
    UNMAP_HANDLE,
    Caps,
    ModuleError,
    call,
    caps_of,
)
from nvdma.pci.mmio import MappedRegisters
from nvdma.pci.window import Window

MOST_PAGES_A_CALL = 1 << 20


class KmodAccess:
    """A function through the module's descriptor; see nvdma.pci.access.Access."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def caps(self) -> Caps:
        """The module's facts of the function. Raises ModuleError."""
        return caps_of(self.fd)

    def map_memory(self, view: memoryview, address: int, stack: ExitStack) -> DmaMemory:
        """Pins memory at virtual `address` until `stack` is closed. Raises ArenaExhausted and ModuleError."""
        request = bytearray(PIN.pack(address, view.nbytes, 0, 0))
        handle = PIN.unpack(self._pin(request, f"pinning {view.nbytes} bytes for the device"))[2]
        own = view[:]
        stack.callback(self._unmap, handle, own)
        return DmaMemory(own, address, Scattered(self._pages(handle, view.nbytes)))

    def map_window(self, window: Window, stack: ExitStack) -> Scattered:
        """The function's addresses of a peer's memory; nothing of it is mapped into this process."""
        peer = window.peer
        request = bytearray(MAP_BAR.pack(peer.domain, peer.bus, peer.device << 3 | peer.function, window.bar, 0,
                                         window.offset, window.nbytes, 0, 0))
        what = f"mapping {window.nbytes} bytes of BAR {window.bar} of {peer}"
        handle = MAP_BAR.unpack(call(self.fd, MAP_PEER, request, what))[7]
        stack.callback(self._unmap, handle, None)
        return Scattered(self._pages(handle, window.nbytes))

    def map_dmabuf(self, fd: int, stack: ExitStack) -> Scattered:
        """The function's addresses of memory that another driver exports as a dma-buf."""
        request = bytearray(MAP_DMABUF.pack(fd, 0, 0))
        _, handle, nbytes = MAP_DMABUF.unpack(call(self.fd, MAP_EXPORTED, request, "mapping a dma-buf"))
        stack.callback(self._unmap, handle, None)
        return Scattered(self._pages(handle, nbytes))

    def map_registers(self, stack: ExitStack) -> MappedRegisters:
        """The registers in BAR 0, mapped until `stack` is closed. Raises ModuleError and OSError."""
        nbytes = self.caps().bar_bytes
        mapping = mmap.mmap(self.fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        stack.callback(mapping.close)
        return MappedRegisters(ctypes.addressof(ctypes.c_char.from_buffer(mapping)), nbytes)

    def enable_bus_master(self, stack: ExitStack) -> None:
        """Lets the function read and write memory; `stack` resets it. Raises ModuleError."""
        call(self.fd, SET_MASTER, bytearray(), "letting it read and write memory")
        stack.callback(self.reset)

    def reset(self) -> None:
        """Has the module disable the controller and clear its bus mastering. Raises ModuleError."""
        call(self.fd, QUIESCE, bytearray(), "stopping it")

    def _pin(self, request: bytearray, what: str) -> bytearray:
        try:
            return call(self.fd, PIN_MEMORY, request, what)
        except ModuleError as refused:
            if isinstance(refused.__cause__, OSError) and refused.__cause__.errno == errno.ENOMEM:
                raise ArenaExhausted(refused.what,
                                     hint="raise RLIMIT_MEMLOCK (LimitMEMLOCK= in systemd)") from refused
            raise

    def _pages(self, handle: int, nbytes: int) -> Pages:
        addresses = np.zeros(nbytes // mmap.PAGESIZE, np.uint64)
        for first in range(0, len(addresses), MOST_PAGES_A_CALL):
            part = addresses[first : first + MOST_PAGES_A_CALL]
            request = bytearray(PAGES.pack(part.ctypes.data, first, len(part), handle))
            call(self.fd, GET_PAGES, request, "asking for bus addresses")
        return addresses

    def _unmap(self, handle: int, view: memoryview | None) -> None:
        call(self.fd, UNMAP_HANDLE, bytearray(UNMAP.pack(handle, 0)), "unmapping")
        if view is not None:
            view.release()
