"""What does a test of the NVMe driver start from? A scripted controller, its memory, and the driver on both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from nvdma.arena import Arena
from nvdma.nvme import commands, prp
from nvdma.nvme.admin import ADMIN_BYTES
from nvdma.nvme.controller import Controller, Deadlines
from nvdma.nvme.queue import Completion, QueuePair, queue_bytes
from nvdma.nvme.spec import Entries
from nvdma.pci.dma import PAGE, BusAddresses, Contiguous, DmaMemory, Scattered
from support.nvme_device import ScriptedDevice
from support.nvme_firmware import Image, Model

BLOCK = 512
# Long enough for a loaded machine, short enough to wait for what never comes.
DEADLINES = Deadlines(admin=0.05, shutdown=0.05)
FIRST_BUS_ADDRESS = 0x1_0000_0000


def content(nbytes: int, seed: int = 1) -> bytes:
    """Bytes of which no two stretches look alike."""
    return np.random.default_rng(seed).bytes(nbytes)


class Rig:
    """A controller and its driver. Bus addresses differ from virtual ones, so that a mix-up is a fault."""

    def __init__(self, stack: ExitStack, images: Mapping[int, bytes | Image] | None = None, model: Model | None = None,
                 *, queues: int = 4) -> None:
        self.device = ScriptedDevice({1: content(1 << 20)} if images is None else images, model)
        self._stack = stack
        # What is shared later must still be unshared after the controller was shut down.
        self._memory = stack.enter_context(ExitStack())
        self._next = FIRST_BUS_ADDRESS
        self._random = np.random.default_rng(7)
        self.controller = Controller(self.device, self.memory(ADMIN_BYTES), "nvme7", queues=queues,
                                     deadlines=DEADLINES)

    def memory(self, nbytes: int, *, scattered: bool = False) -> DmaMemory:
        """Memory shared with the device, in one piece of bus addresses or with its pages in any order."""
        arena = self._memory.enter_context(Arena(nbytes))
        count = -(-nbytes // PAGE)
        bus: BusAddresses = Contiguous(self._next)
        if scattered:
            bus = Scattered((self._next + 2 * PAGE * self._random.permutation(count)).astype(np.uint64))
        self._next += 2 * PAGE * (count + 1)
        return self.device.bus.share(DmaMemory(arena.view, arena.address, bus))

    def open(self) -> Controller:
        """The controller, opened."""
        self.controller.open(self._stack)
        return self.controller

    def queue(self, entries: int = 16, vector: int | None = None) -> QueuePair:
        """A new I/O queue of the opened controller."""
        return self.controller.create_queue(self.memory(queue_bytes(entries)), entries, vector)

    def read(self, queue: QueuePair, lba: int, nbytes: int, *, nsid: int = 1, scattered: bool = True) -> bytes:
        """One read, carried out. Fails when it completes with an error."""
        data = self.memory(nbytes, scattered=scattered)
        queue.submit(self.entry(data, lba, nbytes, nsid))
        (completion,) = self.wait(queue)
        assert completion.status == 0, hex(completion.status)
        return bytes(data.view[:nbytes])

    def wait(self, queue: QueuePair, seconds: float = 1.0) -> list[Completion]:
        """What completes next, at least one."""
        return queue.wait(seconds, self.controller.check)

    def entry(self, data: DmaMemory, lba: int, nbytes: int, nsid: int = 1) -> Entries:
        """A read of `nbytes` from block `lba` on to the beginning of `data`, with a list page of its own."""
        list_page = self.memory(PAGE)
        prp1, prp2, listed = prp.prepare(data.bus.pages(0, nbytes), list_page.bus.at(0))
        addresses = listed.tobytes()
        list_page.view[: len(addresses)] = addresses
        block = self.controller.namespace(nsid).block_bytes
        return commands.read(nsid, lba, nbytes // block, prp1, prp2)

    def small_reads(self, count: int, lba: int = 0) -> tuple[Entries, DmaMemory]:
        """`count` reads of a block each, to a page each."""
        data = self.memory(count * PAGE)
        lbas = np.arange(lba, lba + count, dtype=np.uint64)
        return commands.read(1, lbas, 1, data.bus.pages(0, count * PAGE), 0), data

    def assert_clean(self) -> None:
        """The driver broke no rule and the device met no memory but ours."""
        assert self.device.violations == []
        assert self.device.bus.faults == []


@contextmanager
def opened(images: Mapping[int, bytes | Image] | None = None, model: Model | None = None) -> Iterator[Rig]:
    """A rig whose controller is open; shut down and found clean at the end."""
    with ExitStack() as stack:
        rig = Rig(stack, images, model)
        stack.callback(rig.assert_clean)
        rig.open()
        yield rig


def reaped(queue: QueuePair) -> list[tuple[int, int]]:
    """Identifiers and statuses of what has completed."""
    return [(completion.cid, completion.status) for completion in queue.reap()]


def cids(completions: list[Completion]) -> list[int]:
    """Their identifiers."""
    return [completion.cid for completion in completions]
