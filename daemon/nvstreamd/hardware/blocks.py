"""How is a whole drive opened as the block device that the kernel makes of it, named by its serial number?"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from nvdma.pci.address import PciAddress
from nvstreamd.errors import ClaimRefused, DriveInUse, DriveMissing, HardwareError
from nvstreamd.hardware.drives import NAMESPACE, serial_of
from nvstreamd.hardware.eligibility import Policy, Refusal, not_to_spare
from nvstreamd.hardware.facts import NVME_CLASS, Machine, NvmeController
from nvstreamd.hardware.functions import functions, path_of
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal
from nvstreamd.hardware.system import System
from nvstreamd.weights.packed.files import OpenFile, adopt


class DriveStore:
    """The drives of `system` that hold packed models. Only those whose serial numbers `policy` names are opened.

    Looking at a machine takes a while (blkid): callers that must not wait use a thread.
    """

    def __init__(self, system: System, policy: Policy, journal: Journal) -> None:
        self.system = system
        self.policy = policy
        self.journal = journal

    def open_block(self, serial: str, nsid: int, *, write: bool, stack: ExitStack) -> OpenFile:
        """A namespace's block device; `stack` closes it. To write, it is opened for us alone.

        Raises DriveMissing for a drive or a namespace that is not there, DriveInUse for one that is claimed or that
        somebody else has, ClaimRefused with every reason against it, HardwareError when it cannot be opened.
        """
        if serial not in self.policy.serials:
            reason = Refusal("not_named", f"no [[drives]] entry of the configuration names serial {serial[:40]!r}",
                             "add one, if this drive is to spare")
            raise ClaimRefused(f"drive {serial[:40]!r} may not be opened: {reason.reason}", str(reason), (reason,))
        name = self._disk(serial, nsid)
        if write:
            self._check_spare(serial)
        fd = self._open(name, serial, write)
        stack.callback(os.close, fd)
        # Between the look and the opening another drive may have got the name.
        if self._disk(serial, nsid) != name:
            raise DriveInUse(f"drive {serial} went away while it was opened", "check its seat and `dmesg`")
        return adopt(fd, f"/dev/{name} ({serial})")

    def _open(self, name: str, serial: str, write: bool) -> int:
        flags = os.O_RDWR | os.O_EXCL if write else os.O_RDONLY
        try:
            return self.system.open_device(name, flags | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DriveInUse(f"/dev/{name} ({serial}) is in use",
                                 f"see `lsof /dev/{name}`; an import to it may be running") from error
            raise HardwareError(f"/dev/{name} ({serial}) cannot be opened: {error.strerror}",
                                "run the daemon as root; a service needs DeviceAllow=block-blkext rw") from error

    def _check_spare(self, serial: str) -> None:
        machine = take(self.system)
        reasons = not_to_spare(self._controller(machine, serial), machine, self.policy)
        if reasons:
            raise ClaimRefused(f"drive {serial} may not be written: {reasons[0].reason}",
                               "; ".join(str(reason) for reason in reasons), reasons)

    def _controller(self, machine: Machine, serial: str) -> NvmeController:
        for controller in machine.controllers:
            if controller.serial == serial:
                return controller
        raise self._missing(serial)

    def _disk(self, serial: str, nsid: int) -> str:
        """The name of the kernel's disk."""
        drives = [each.address for each in functions(self.system) if each.class_code == NVME_CLASS]
        found = [address for address in drives if serial_of(self.system, address) == serial]
        if not found:
            raise self._missing(serial)
        if len(found) > 1:
            raise DriveInUse(f"{len(found)} controllers have serial {serial}",
                             "take one of them out: which is meant cannot be told")
        for name in self._disks(found[0]):
            if self.system.read(f"sys/class/block/{name}/nsid") == str(nsid):
                return name
        raise DriveMissing(f"drive {serial} has no namespace {nsid} that the kernel shows",
                           "`nvme list` shows what it has")

    def _disks(self, address: PciAddress) -> list[str]:
        home = path_of(address, "nvme")
        names = [name for each in self.system.names(home) for name in self.system.names(f"{home}/{each}")]
        return [name for name in names if NAMESPACE.fullmatch(name)]

    def _missing(self, serial: str) -> DriveMissing | DriveInUse:
        for record in self.journal.records():
            if record.serial == serial:
                return DriveInUse(f"drive {serial} is claimed: the kernel has no block device of it",
                                  f"unload the model that uses it; one claimed by hand: nvstreamd release {serial}")
        return DriveMissing(f"no NVMe drive has serial {serial}", "`nvstreamd drives` lists those that are there")
