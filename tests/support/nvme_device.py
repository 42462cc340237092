"""What does a driver meet when it meets an NVMe controller? One in this process, strict, and scripted to misbehave.

It stands behind `nvdma.pci.mmio.Registers` and works on real memory when a register is written. What a driver must not
do (ring the doorbell of a queue that is not there, reuse an identifier, leave an offset in a PRP) is noted in
`violations`, what an IOMMU would stop in `bus.faults`: tests end by asserting that both are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from support.nvme_bus import PAGE, Bus
from support.nvme_firmware import Firmware, Image, Model
from support.nvme_queues import Queues
from support.nvme_script import Script

GONE32, GONE64 = (1 << 32) - 1, (1 << 64) - 1


class ScriptedDevice:
    """The registers. `history` tells what the controller was made to do, `accesses` counts reads and writes."""

    def __init__(self, images: Mapping[int, bytes | Image], model: Model | None = None) -> None:
        self.model = model or Model()
        self.bus = Bus()
        self.violations: list[str] = []
        self.history: list[str] = []
        self.script = Script()
        self.accesses = 0
        self.firmware = Firmware(self.model, {nsid: image if isinstance(image, Image) else Image(bytearray(image))
                                              for nsid, image in images.items()}, self.bus, self.violations)
        self._cc = self._csts = self._aqa = self._asq = self._acq = 0
        self._transition: Callable[[], None] | None = None
        self._reads_left = 0
        self.queues = Queues(self.firmware, self.script)

    # What a test does to it.

    def step(self, count: int = 1 << 16) -> None:
        """With `script.manual`: carries out up to `count` commands of each I/O queue."""
        for qid in [qid for qid in self.queues.sqs if qid]:
            self.queues.process(qid, count)

    def complete(self, qid: int, cid: int, status: int = 0) -> None:
        """Posts a completion out of the blue, or one that was lost."""
        self.queues.post(self.queues.sqs[qid], qid, cid, status)

    def report_event(self, dw0: int) -> None:
        """Completes an Asynchronous Event Request, of which there must be one."""
        self.queues.post(self.queues.sqs[0], 0, self.queues.events.pop(0), 0, dw0)

    def is_running(self) -> bool:
        """Whether it may still reach memory."""
        return bool(self._csts & 1) and not self.queues.gone

    def reset_function(self) -> None:
        """A function-level reset: everything is forgotten."""
        self._cc = self._csts = self._aqa = self._asq = self._acq = 0
        self._transition = None
        self.queues = Queues(self.firmware, self.script)
        self.history.append("function reset")

    # Registers.

    def read32(self, offset: int) -> int:
        """See nvdma.pci.mmio.Registers."""
        if self._is_gone():
            return GONE32
        if offset == 0x1C:
            self._settle()
            return self._csts | self.queues.fatal << 1
        return {0x08: 0x00020000, 0x14: self._cc, 0x24: self._aqa}[offset]

    def read64(self, offset: int) -> int:
        """See nvdma.pci.mmio.Registers."""
        if self._is_gone():
            return GONE64
        model = self.model
        capabilities = (model.mqes | 1 << 16 | model.timeout << 24 | model.dstrd << 32 | model.css << 37
                        | model.mpsmin << 48 | model.mpsmin << 52)
        return {0x00: capabilities, 0x28: self._asq, 0x30: self._acq}[offset]

    def write32(self, offset: int, value: int) -> None:
        """See nvdma.pci.mmio.Registers."""
        if self._is_gone():
            return
        if offset >= 0x1000:
            if not self._csts & 1:
                self.violations.append(f"doorbell at {offset:#x} rung while not ready")
            self.queues.ring(offset - 0x1000, value)
        elif offset == 0x14:
            self._configure(value)
        elif offset == 0x24:
            self._aqa = value
        else:
            self.violations.append(f"write of {value:#x} to register {offset:#x}")

    def write64(self, offset: int, value: int) -> None:
        """See nvdma.pci.mmio.Registers."""
        if self._is_gone():
            return
        if self._cc & 1 or offset not in (0x28, 0x30) or value % PAGE:
            self.violations.append(f"write of {value:#x} to register {offset:#x}")
        self._asq, self._acq = (value, self._acq) if offset == 0x28 else (self._asq, value)

    def _is_gone(self) -> bool:
        self.accesses += 1
        self.queues.gone |= self.script.vanish_at is not None and self.accesses > self.script.vanish_at
        return self.queues.gone

    # CC and CSTS.

    def _configure(self, value: int) -> None:
        before, self._cc = self._cc, value
        ready = self._csts & 1
        if value & 1 and not before & 1:
            self._enable(value, ready)
        elif before & 1 and not value & 1:
            if not ready and not self.queues.fatal and not self.script.stuck_enable:
                self.violations.append("CC.EN was cleared before CSTS.RDY was 1")
            if not self.script.stuck_disable:
                self._begin(self._disabled)
        elif value >> 14 & 3 and not before >> 14 & 3:
            self.history.append(f"shutdown with {self.queues.io_queues} I/O queues")
            self._csts = self._csts & ~0xC | 0x4
            if not self.script.stuck_shutdown:
                self._begin(lambda: setattr(self, "_csts", self._csts & ~0xC | 0x8))

    def _enable(self, value: int, ready: int) -> None:
        if ready or value & 0x3FFFF0 & ~0xC000 != 0x060000 or value >> 20 != 4:
            self.violations.append(f"enabled with CC {value:#x}, CSTS.RDY {ready}")
        if self.script.fatal_enable:
            self.queues.fatal = True
        elif not self.script.stuck_enable:
            self._begin(self._enabled)

    def _begin(self, transition: Callable[[], None]) -> None:
        self._transition, self._reads_left = transition, self.script.reads_until_ready

    def _settle(self) -> None:
        self._reads_left -= 1
        if self._transition is not None and self._reads_left < 0:
            self._transition()
            self._transition = None

    def _enabled(self) -> None:
        self.history.append("enabled")
        self._csts = 1
        self.queues.enable(self._asq, self._acq, self._aqa)

    def _disabled(self) -> None:
        self.history.append("disabled")
        self._csts = 0
        self.queues = Queues(self.firmware, self.script)
