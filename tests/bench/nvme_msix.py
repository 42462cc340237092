"""What if an interrupt said that commands have completed, and not a look at memory? Our queues with MSI-X.

VFIO turns the vector of a completion queue into an eventfd(2) (linux/vfio.h, VFIO_DEVICE_SET_IRQS).
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import ExitStack

from nvdma.arena import Arena
from nvdma.backends.nvme import SILENCE_SECONDS, NvmeBackend, OnDrive
from nvdma.nvme.drive import Drive
from nvdma.nvme.queue import queue_bytes
from nvdma.pci.access import VfioAccess
from nvdma.pci.vfio_calls import DEVICE_SET_IRQS, IRQ_SET, IRQ_SET_EVENTFD, IRQ_SET_TRIGGER, call
from nvdma.types import Source

MSIX = 2  # VFIO_PCI_MSIX_IRQ_INDEX
IRQ_SET_NONE = 1 << 0
# The admin queue completes to vector 0, which nobody listens to.
VECTOR = 1


class InterruptingDrive(Drive):
    """A drive whose queue interrupts; after `open`, `event` becomes readable when it has."""

    event: int

    def __init__(self, access: VfioAccess, name: str, depth: int) -> None:
        super().__init__(access, name, depth)
        self._device = access.device

    def open(self, stack: ExitStack, spare_lists: int = 0) -> None:
        """See Drive. The queue is created anew, with a vector."""
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, self.event)
        rings = self.memory(queue_bytes(self.depth + 1), stack)
        self._set(IRQ_SET_EVENTFD, VECTOR, 1, self.event, "asking for its interrupts")
        stack.callback(self._set, IRQ_SET_NONE, 0, 0, 0, "asking for no more interrupts")
        super().open(stack, spare_lists)
        self.controller.delete_queue(self.queue)
        self.queue = self.controller.create_queue(rings, self.depth + 1, VECTOR)

    def _set(self, kind: int, start: int, count: int, event: int, what: str) -> None:
        call(self._device.fd, DEVICE_SET_IRQS,
             IRQ_SET.pack(IRQ_SET.size, kind | IRQ_SET_TRIGGER, MSIX, start, count, event), what)


class InterruptedBackend(NvmeBackend):
    """NvmeBackend on one such drive: while nothing has completed it waits for the interrupt."""

    def __init__(self, drive: InterruptingDrive, places: Sequence[OnDrive], sources: Sequence[Source],
                 arena: Arena) -> None:
        super().__init__("nvme_host_msix", [drive], places, sources, arena)
        self._drive = drive
        self._poll = select.poll()

    def open(self) -> None:
        """See NvmeBackend."""
        super().open()
        self._poll.register(self._drive.event, select.POLLIN)

    def _pause(self) -> None:
        # An interrupt between the last look and now is counted: it ends the wait at once.
        if self._poll.poll(SILENCE_SECONDS * 1e3):
            os.eventfd_read(self._drive.event)
