"""How does a model get a drive for itself, and how does the kernel get it back?"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from nvdma.types import UNTRANSLATED
from nvstreamd.errors import DriveInUse, DriveMissing, NvstreamError
from nvstreamd.hardware.changes import NVSTREAM
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.facts import Machine, NvmeController
from nvstreamd.hardware.held import HeldDrive, held_drive
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Record

log = logging.getLogger(__name__)


class Holder(Protocol):
    """Who takes drives from the kernel. What it does takes a while: callers that must not wait use a thread."""

    def hold(self, serials: Sequence[str], stack: ExitStack) -> Sequence[HeldDrive]:
        """Takes drives; `stack` gives them back, once no process has one open. Raises NvstreamError, all given back."""

    def share(self, serials: Sequence[str], stack: ExitStack) -> None:
        """Nobody takes these drives from the kernel until `stack` is closed. Raises DriveInUse when somebody has."""


class ClaimHolder:
    """The holder that claims drives. One model has a drive, or any number read it through the kernel."""

    def __init__(self, claims: Claims, policy: Policy) -> None:
        self.claims = claims
        self.policy = policy
        self._taken: set[str] = set()
        self._shared: Counter[str] = Counter()
        # Models load beside each other, each in its thread; the journal lets one process in, once.
        self._lock = threading.Lock()

    def hold(self, serials: Sequence[str], stack: ExitStack) -> Sequence[HeldDrive]:
        """Claims drives, all or none; `stack` gives them back, once no process has one open.

        Raises ClaimRefused, DriveMissing, DriveInUse or HardwareError.
        """
        with ExitStack() as own:
            held = []
            for serial in serials:
                with self._lock:
                    held.append(self._hold(serial, own))
            stack.enter_context(own.pop_all())
        return held

    def share(self, serials: Sequence[str], stack: ExitStack) -> None:
        """Counts one reader more of each drive until `stack` is closed. Raises DriveInUse when a model has one."""
        with ExitStack() as own:
            for serial in serials:
                with self._lock:
                    self._check_not_taken(serial)
                    self._shared[serial] += 1
                own.callback(self._unshare, serial)
            stack.enter_context(own.pop_all())

    def recover(self) -> None:
        """Gives back what a daemon that is no more left claimed. Raises NvstreamError, when all else is given back."""
        for record in self.claims.recover():
            log.warning("gave back %s (%s), which an earlier daemon had left claimed", record.address, record.serial)

    def _hold(self, serial: str, stack: ExitStack) -> HeldDrive:
        self._check_not_taken(serial)
        if self._shared[serial] > 0:
            raise DriveInUse(f"drive {serial} is read through the kernel by another model",
                             "for queues of its own unload that one, and load this one again")
        self._taken.add(serial)
        stack.callback(self._taken.discard, serial)
        machine = take(self.claims.system)
        controller = _controller(machine, serial)
        record = self.claims.claim(controller, self.claims.plan(controller, machine, self.policy))
        stack.callback(self._release, record)
        if record.driver == NVSTREAM:
            log.warning("drive %s: %s", serial, UNTRANSLATED)
        return held_drive(serial, str(record.address), record.driver)

    def _unshare(self, serial: str) -> None:
        with self._lock:
            self._shared[serial] -= 1

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


def _controller(machine: Machine, serial: str) -> NvmeController:
    for controller in machine.controllers:
        if controller.serial == serial:
            # The kernel's driver knows a drive before it has looked for its namespaces.
            if not controller.namespaces and not controller.shared:
                raise DriveMissing(f"the kernel shows no namespace of drive {serial}", "`nvme list` shows what it has")
            return controller
    raise DriveMissing(f"no NVMe drive has serial {serial}", "`nvstreamd drives` lists those that are there")
