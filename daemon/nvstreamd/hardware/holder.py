"""How does a model get a drive for itself, and how does the kernel get it back?"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from nvdma.errors import DmaError
from nvdma.pci.address import PciAddress
from nvdma.pci.vfio_open import Opened, open_function
from nvdma.pci.vfio_request import watch
from nvstreamd.errors import DriveInUse, HardwareError, NotFound, NvstreamError
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Record

log = logging.getLogger(__name__)


class HeldDrive(Protocol):
    """A drive that is ours until it is given back."""

    @property
    def serial(self) -> str:
        """Its serial number."""

    @property
    def address(self) -> str:
        """Where it is on the bus."""

    def open(self, stack: ExitStack) -> Opened:
        """Opens it for one process; `stack` closes our descriptors, not those that were passed on.

        Raises HardwareError.
        """

    def watch(self, opened: Opened, stack: ExitStack) -> int:
        """An eventfd(2) that becomes readable when the kernel wants the drive back; `stack` closes it.

        Raises HardwareError.
        """


class Holder(Protocol):
    """Who takes drives from the kernel. What it does takes a while: callers that must not wait use a thread."""

    def hold(self, serials: Sequence[str], stack: ExitStack) -> Sequence[HeldDrive]:
        """Takes drives; `stack` gives them back, once no process has one open. Raises NvstreamError, all given back."""

    def share(self, serials: Sequence[str], stack: ExitStack) -> None:
        """Nobody takes these drives from the kernel until `stack` is closed. Raises DriveInUse when somebody has."""


@dataclass(frozen=True, slots=True)
class ClaimedFunction:
    """See HeldDrive."""

    serial: str
    address: str

    def open(self, stack: ExitStack) -> Opened:
        """See HeldDrive."""
        try:
            return open_function(PciAddress.parse(self.address), stack)
        except DmaError as error:
            raise HardwareError(f"drive {self.serial}: {error.what}", error.hint) from error

    def watch(self, opened: Opened, stack: ExitStack) -> int:
        """See HeldDrive."""
        try:
            return watch(opened.device, stack)
        except DmaError as error:
            raise HardwareError(f"drive {self.serial}: {error.what}", error.hint) from error


class ClaimHolder:
    """See Holder. One model has a drive, or any number read it through the kernel."""

    def __init__(self, claims: Claims, policy: Policy) -> None:
        self.claims = claims
        self.policy = policy
        self._taken: set[str] = set()
        self._shared: Counter[str] = Counter()
        # Models load beside each other, each in its thread; the journal lets one process in, once.
        self._lock = threading.Lock()

    def hold(self, serials: Sequence[str], stack: ExitStack) -> Sequence[HeldDrive]:
        """See Holder. Raises ClaimRefused, NotFound, DriveInUse or HardwareError."""
        with ExitStack() as own:
            held = []
            for serial in serials:
                with self._lock:
                    held.append(self._hold(serial, own))
            stack.enter_context(own.pop_all())
        return held

    def share(self, serials: Sequence[str], stack: ExitStack) -> None:
        """See Holder."""
        with ExitStack() as own:
            for serial in serials:
                with self._lock:
                    self._check_not_taken(serial)
                    self._shared[serial] += 1
                own.callback(self._shared.subtract, [serial])
            stack.enter_context(own.pop_all())

    def recover(self) -> None:
        """Gives back what a daemon that is no more left claimed. Raises NvstreamError, when all else is given back."""
        for record in self.claims.recover():
            log.warning("gave back %s (%s), which an earlier daemon had left claimed", record.address, record.serial)

    def _hold(self, serial: str, stack: ExitStack) -> ClaimedFunction:
        self._check_not_taken(serial)
        if self._shared[serial] > 0:
            raise DriveInUse(f"drive {serial} is read through the kernel by another model",
                             "for queues of its own unload that one, and load this one again")
        self._taken.add(serial)
        stack.callback(self._taken.discard, serial)
        machine = take(self.claims.system)
        for controller in machine.controllers:
            if controller.serial == serial:
                record = self.claims.claim(controller, self.claims.plan(controller, machine, self.policy))
                stack.callback(self._release, record)
                return ClaimedFunction(serial, str(record.address))
        raise NotFound(f"no NVMe drive has serial {serial}", "`nvstreamd drives` lists those that are there")

    def _check_not_taken(self, serial: str) -> None:
        if serial in self._taken:
            raise DriveInUse(f"drive {serial} is another model's", "unload that one first")

    def _release(self, record: Record) -> None:
        try:
            with self._lock:
                self.claims.release(record)
        except NvstreamError as error:
            # The journal keeps it: the next start, or `nvstreamd recover`, tries again.
            log.error("drive %s is not given back: %s", record.serial, error)
