"""How does a second thread read a few bytes of a drive, while the first streams? With a queue and memory of its own."""

from __future__ import annotations

from nvdma.nvme import commands
from nvdma.nvme.controller import Controller
from nvdma.nvme.identify import NamespaceFacts
from nvdma.nvme.prp import prepare
from nvdma.nvme.queue import QueuePair, queue_bytes
from nvdma.nvme.status import failure
from nvdma.pci.dma import PAGE, DmaMemory

ENTRIES = 2
BOUNCE_BYTES = 128 << 10
# The rings, a page for a command's list, and what the drive writes.
SIDE_BYTES = queue_bytes(ENTRIES) + PAGE + BOUNCE_BYTES
READ_SECONDS = 30.0


class SideQueue:
    """One command at a time, on a queue pair of `controller`; `memory` has SIDE_BYTES and outlives the controller.

    One thread uses it, which need not be the controller's: it touches no other queue.
    """

    def __init__(self, controller: Controller, memory: DmaMemory) -> None:
        self._controller = controller
        self._queue: QueuePair = controller.create_queue(memory, ENTRIES)
        self._memory = memory
        self._list = queue_bytes(ENTRIES)
        self._bounce = self._list + PAGE
        self._largest = min(BOUNCE_BYTES, controller.facts.max_transfer or BOUNCE_BYTES)

    def read(self, namespace: NamespaceFacts, offset: int, nbytes: int) -> bytes:
        """`nbytes` from byte `offset` of a namespace on; both may be anything inside it.

        Raises CommandFailed, DeadlineExceeded, DeviceGone and ControllerFatal.
        """
        begin, end = offset // PAGE * PAGE, -(-(offset + nbytes) // PAGE) * PAGE
        pieces = [self._pages(namespace, at, min(self._largest, end - at)) for at in range(begin, end, self._largest)]
        return b"".join(pieces)[offset - begin : offset - begin + nbytes]

    def _pages(self, namespace: NamespaceFacts, offset: int, nbytes: int) -> bytes:
        """Whole pages, no more than a command brings."""
        bus = self._memory.bus
        prp1, prp2, listed = prepare(bus.pages(self._bounce, nbytes), int(bus.pages(self._list, PAGE)[0]))
        with self._memory.view[self._list : self._list + PAGE].cast("Q") as entries:
            for number, address in enumerate(listed):
                entries[number] = int(address)
        lba, block = offset // namespace.block_bytes, namespace.block_bytes
        self._queue.submit(commands.read(namespace.nsid, lba, nbytes // block, prp1, prp2))
        (done,) = self._queue.wait(READ_SECONDS, self._controller.check)
        if done.status:
            raise failure(done.status, f"{self._queue.name}: Read", lba=lba)
        return bytes(self._memory.view[self._bounce : self._bounce + nbytes])
