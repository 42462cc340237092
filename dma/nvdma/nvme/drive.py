"""How does a function become a drive that reads? Memory, registers and bus mastering, in that order and back."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from nvdma.arena import Arena
from nvdma.errors import DmaError
from nvdma.nvme.admin import ADMIN_BYTES
from nvdma.nvme.controller import Controller
from nvdma.nvme.queue import QueuePair, queue_bytes
from nvdma.nvme.side_queue import SIDE_BYTES, SideQueue
from nvdma.pci.access import Access
from nvdma.pci.dma import PAGE, DmaMemory

LOG = logging.getLogger(__name__)


class Drive:
    """One controller and one queue of `depth` commands, `name` in messages. `lists` has a page for each of them.

    After `open`: `controller`, `queue`, `lists`, and `side` for small reads of another thread. What `open` leaves on
    the stack stops the controller, however it takes it, before a byte of memory is given back.
    """

    controller: Controller
    queue: QueuePair
    lists: DmaMemory
    side: SideQueue

    def __init__(self, access: Access, name: str, depth: int) -> None:
        self.access = access
        self.name = name
        self.depth = depth

    def open(self, stack: ExitStack, spare_lists: int = 0) -> None:
        """Starts the controller. `lists` gets so many pages more, for lists that are kept.

        Raises what Controller.open raises, VfioError and ArenaExhausted.
        """
        entries = self.depth + 1  # a ring is never quite full
        admin = self.memory(ADMIN_BYTES, stack)
        rings = self.memory(queue_bytes(entries), stack)
        self.lists = self.memory((self.depth + spare_lists) * PAGE, stack)
        side = self.memory(SIDE_BYTES, stack)
        registers = self.access.map_registers(stack)
        self.access.enable_bus_master(stack)
        self.controller = Controller(registers, admin, self.name, queues=2)
        stack.callback(self._stop)
        try:
            self.controller.open(ExitStack())
            self.queue = self.controller.create_queue(rings, entries)
            self.side = SideQueue(self.controller, side)
        except DmaError:
            # It may have learnt our addresses and not have stopped.
            self.access.reset()
            raise

    def memory(self, nbytes: int, stack: ExitStack) -> DmaMemory:
        """Zeroed memory that the drive reaches."""
        arena = stack.enter_context(Arena(nbytes))
        return self.access.map_memory(arena.view, arena.address, stack)

    def _stop(self) -> None:
        try:
            self.controller.shutdown()
        except DmaError as error:
            LOG.warning("%s; its function is reset", error)
            self.access.reset()
