"""How is a drive taken, given back, and put right after a crash?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nvstreamd import message_ids
from nvstreamd.errors import ClaimRefused, HardwareError, NvstreamError
from nvstreamd.hardware.changes import Change, LoadModule, changes_to_make, driver_for
from nvstreamd.hardware.drivers import driver_of, is_there
from nvstreamd.hardware.eligibility import Policy, refusals
from nvstreamd.hardware.facts import Machine, NvmeController
from nvstreamd.hardware.functions import function
from nvstreamd.hardware.inventory import boot_id
from nvstreamd.hardware.journal import Before, Journal, Record, read
from nvstreamd.hardware.system import System

log = logging.getLogger(__name__)


class Claims:
    """The drives that are ours. Every change is in the journal before it is made."""

    def __init__(self, system: System, journal: Journal) -> None:
        self.system = system
        self.journal = journal

    def plan(self, controller: NvmeController, machine: Machine, policy: Policy) -> tuple[Change, ...]:
        """The changes of claiming a drive. Raises ClaimRefused with every reason why it may not be taken."""
        reasons = refusals(controller, machine, policy)
        if reasons:
            raise ClaimRefused(f"{controller.address} ({controller.serial}) may not be taken: {reasons[0].reason}",
                               "; ".join(str(reason) for reason in reasons), reasons)
        loaded = self._has_loaded(driver_for(controller.function))
        return changes_to_make(self.system, controller.function, loaded_for_us=loaded)

    def claim(self, controller: NvmeController, changes: Sequence[Change]) -> Record:
        """Takes a drive by the changes of a plan.

        What fails, or is interrupted, is taken back before it raises NvstreamError. When even that fails the error says
        so, and the claim stays in the journal for `recover`.
        """
        taken = controller.function
        before = Before(taken.driver or "", taken.driver_override or "", taken.power or "")
        record = Record(controller.address, controller.serial or "", boot_id(self.system), before, tuple(changes))
        with self.journal.lock():
            self.journal.create(record)
            try:
                for number, change in enumerate(changes):
                    self.journal.begin(record, number)
                    change.apply(self.system)
                    self.journal.finish(record, number)
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                self._take_back(record, error)
                raise
        log.info("claimed %s (%s)", record.address, record.serial, extra=message_ids.CLAIMED)
        return record

    def held(self) -> list[Record]:
        """The drives that are claimed in full and still ours."""
        return [record for record in self.journal.records() if self._is_held(record)]

    def release(self, record: Record) -> None:
        """Gives a drive back, and sees that it is as it was. Raises NvstreamError; the journal then stays."""
        with self.journal.lock():
            self._revert(record)
        log.info("released %s (%s)", record.address, record.serial, extra=message_ids.RELEASED)

    def recover(self) -> list[Record]:
        """Takes back every claim, complete or not; returns what was taken back.

        For the start of the daemon, and for its end however it came about. Raises NvstreamError for the first claim
        that cannot be read or taken back, after all others were.
        """
        failures: list[NvstreamError] = []
        reverted: list[Record] = []
        with self.journal.lock():
            for path in self.journal.paths():
                try:
                    record = read(path)
                    self._revert(record)
                    reverted.append(record)
                except NvstreamError as error:
                    failures.append(error)
        for failure in failures[1:]:
            log.error("%s", failure)
        if failures:
            raise failures[0]
        return reverted

    def _is_held(self, record: Record) -> bool:
        return (record.complete and record.boot_id == boot_id(self.system)
                and driver_of(self.system, str(record.address)) == record.driver)

    def _has_loaded(self, module: str) -> bool:
        """True when a claim of this boot found a module missing."""
        now = boot_id(self.system)
        changes = (change for record in self.journal.records() if record.boot_id == now for change in record.changes)
        return any(isinstance(change, LoadModule) and change.module == module and not change.was_loaded
                   for change in changes)

    def _take_back(self, record: Record, cause: BaseException) -> None:
        """Takes a claim back. The error when that fails names both: why the claim failed, and why its undoing did."""
        try:
            self._revert(record)
        except NvstreamError as error:
            why = str(cause) or type(cause).__name__
            raise HardwareError(f"{why}; and taking the claim back failed: {error.message}", error.hint) from cause

    def _revert(self, record: Record) -> None:
        # What sysfs was told is forgotten when the machine restarts: the kernel's own driver has the drive again.
        if record.boot_id == boot_id(self.system):
            for change in reversed(record.changes[: record.begun]):
                change.revert(self.system)
            self._verify(record)
        elif function(self.system, record.address).driver_override not in (None, record.before.driver_override):
            log.warning("something beside nvstreamd sets driver_override of %s after each start", record.address)
        self.journal.remove(record)

    def _verify(self, record: Record) -> None:
        if not is_there(self.system, str(record.address)):
            log.warning("%s (%s) is not there any more: nothing to give back", record.address, record.serial)
            return
        found = function(self.system, record.address)
        now = Before(found.driver or "", found.driver_override or "", found.power or "")
        if now != record.before:
            raise HardwareError(f"{record.address} is {now} after its release and was {record.before}",
                                f"see `dmesg`; the claim is kept in {record.path}")
