"""How is a controller switched on, off, and made to stop at once? Its registers alone, and what they must answer."""

from __future__ import annotations

from contextlib import suppress

from nvdma.errors import ControllerFatal, ControllerRefused, DeadlineExceeded, DeviceGone
from nvdma.nvme import spec
from nvdma.pci.mmio import Registers, wait_until

TIMEOUT_UNIT_SECONDS = 0.5
SQE_EXPONENT = spec.SQE_BYTES.bit_length() - 1
CQE_EXPONENT = spec.CQE_BYTES.bit_length() - 1
# What is 0 here is: the NVM Command Set, memory pages of 4096 bytes, round robin.
CONFIGURATION = spec.CC_EN.put(1) | spec.CC_IOSQES.put(SQE_EXPONENT) | spec.CC_IOCQES.put(CQE_EXPONENT)


class Power:
    """CAP, CC and CSTS of the controller `name`. Every method raises DeviceGone when the registers read all ones."""

    def __init__(self, registers: Registers, name: str) -> None:
        self._registers = registers
        self._name = name

    def capabilities(self) -> int:
        """CAP (section 3.1.3.1). Raises ControllerRefused without pages of 4096 bytes or the NVM command set."""
        capabilities = self._registers.read64(spec.CAP)
        self.status()
        if spec.CAP_MPSMIN.get(capabilities):
            smallest = 4096 << spec.CAP_MPSMIN.get(capabilities)
            raise ControllerRefused(f"{self._name}: its smallest memory page is {smallest} bytes, not 4096")
        if not spec.CAP_CSS_NVM.get(capabilities):
            raise ControllerRefused(f"{self._name}: it does not have the NVM command set")
        return capabilities

    def status(self) -> int:
        """CSTS (section 3.1.3.6)."""
        status = self._registers.read32(spec.CSTS)
        if status == spec.ALL_ONES:
            raise DeviceGone(self._name)
        return status

    def check(self) -> None:
        """Raises ControllerFatal when the controller has given up (CSTS.CFS)."""
        if spec.CSTS_CFS.get(self.status()):
            raise ControllerFatal(f"{self._name}: it reports a fatal error (CSTS.CFS)")

    def check_running(self) -> None:
        """Raises what `check` raises, and ControllerFatal as well when an enabled controller is not ready any more."""
        self.check()
        if not spec.CSTS_RDY.get(self.status()):
            raise ControllerFatal(f"{self._name}: it is not ready any more (CSTS.RDY): somebody has reset it or "
                                  "switched its memory space off")

    def enable(self, submissions: int, completions: int, entries: int) -> None:
        """Starts a disabled controller (section 3.5.1) with admin rings of `entries` at two bus addresses.

        Raises ControllerFatal and, when it is not ready after CAP.TO, DeadlineExceeded.
        """
        sizes = spec.AQA_ASQS.put(entries - 1) | spec.AQA_ACQS.put(entries - 1)
        self._registers.write32(spec.AQA, sizes)
        self._registers.write64(spec.ASQ, submissions)
        self._registers.write64(spec.ACQ, completions)
        self._registers.write32(spec.CC, CONFIGURATION)
        wait_until(self._is_ready, self._timeout(), f"{self._name}: CSTS.RDY to become 1")

    def disable(self) -> None:
        """A controller reset (section 3.7.2): when this returns, no memory is read or written and no queue is left.

        Raises DeadlineExceeded when it is not over after CAP.TO.
        """
        self._let_enabling_end()
        self._registers.write32(spec.CC, 0)
        wait_until(lambda: not spec.CSTS_RDY.get(self.status()), self._timeout(),
                   f"{self._name}: CSTS.RDY to become 0")

    def notify_shutdown(self, seconds: float) -> None:
        """A normal shutdown (section 3.6.1): the drive has saved its state afterwards.

        Raises ControllerFatal, and DeadlineExceeded when it is not over after `seconds`.
        """
        self._registers.write32(spec.CC, CONFIGURATION | spec.CC_SHN.put(spec.SHN_NORMAL))
        wait_until(self._is_shut_down, seconds, f"{self._name}: CSTS.SHST to say that the shutdown is complete")

    def _is_ready(self) -> bool:
        self.check()
        return bool(spec.CSTS_RDY.get(self.status()))

    def _is_shut_down(self) -> bool:
        self.check()
        return spec.CSTS_SHST.get(self.status()) == spec.SHST_COMPLETE

    def _let_enabling_end(self) -> None:
        # What clearing CC.EN does before CSTS.RDY has followed it is undefined; where it never does, we must anyway.
        if spec.CC_EN.get(self._registers.read32(spec.CC)):
            settled = spec.CSTS_RDY.put(1) | spec.CSTS_CFS.put(1)
            with suppress(DeadlineExceeded):
                wait_until(lambda: bool(self.status() & settled), self._timeout(), "CSTS.RDY to become 1")

    def _timeout(self) -> float:
        # One unit more than it says: the register has that grain, and 0 would leave no time at all.
        return (spec.CAP_TO.get(self._registers.read64(spec.CAP)) + 1) * TIMEOUT_UNIT_SECONDS
