"""What does the kernel do when drivers are bound through sysfs? A tree of files that behaves like it, and can crash.

Binding, unbinding, driver_override and modules follow drivers/pci/pci-driver.c and drivers/base/bus.c: what the kernel
refuses is refused with the same errno. Each change that a process asks for is an operation; before or after any of
them, or in the middle of a line of the journal, the process can die (`Crash`) or the drive be pulled out.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvstreamd.hardware.journal import Journal
from nvstreamd.hardware.system import Ran, System

ADDRESS, SECOND = "0000:01:00.0", "0000:02:00.0"
SERIAL = "LAB0"
DEVICES, DRIVERS = "sys/bus/pci/devices", "sys/bus/pci/drivers"
DEVICE = f"{DEVICES}/{ADDRESS}"
MODULES = ("nvstream", "vfio_pci")
BOOT = "proc/sys/kernel/random/boot_id"


class Crash(BaseException):
    """The process is gone: nothing that it would have done happens."""


@dataclass(slots=True)
class Fate:
    """What happens at which operation, counted from 0: a crash before or after it, or the drive is pulled out.

    From `refuse_from` on the kernel accepts nothing.
    """

    crash_before: int | None = None
    crash_after: int | None = None
    pull_before: int | None = None
    tear: int | None = None
    refuse_from: int | None = None
    operations: int = 0
    log: list[str] = field(default_factory=list)


class FakeKernel(System):
    """A machine below `root` with NVMe drives, each in its own IOMMU group and held by the driver nvme.

    Without `has_iommu` there are no groups. `held` are the disks that somebody has in use. A driver's disks are there
    after `late` looks at them only.
    """

    def __init__(self, root: Path, fate: Fate | None = None) -> None:
        super().__init__(root)
        self.fate = fate or Fate()
        self.has_iommu = True
        self.held: set[str] = set()
        self.late = 0
        self._looks = 0

    def boot(self, boot_id: str = "boot-1", override: str = "(null)", power: str | None = "on",
             drives: tuple[str, ...] = (ADDRESS,)) -> None:
        """The state after a start of the machine; files outside sysfs and procfs stay."""
        for tree in ("sys", "proc", "dev"):
            shutil.rmtree(self.root / tree, ignore_errors=True)
        self._put(BOOT, boot_id)
        self._register("nvme")
        for address in drives:
            self.plug(address, override, power)

    def plug(self, address: str = ADDRESS, override: str = "(null)", power: str | None = "on") -> None:
        """A drive that has just been found on the bus; without `power` by a kernel that has no power management."""
        home = f"{DEVICES}/{address}"
        for name, value in (("class", "0x010802"), ("vendor", "0x1b36"), ("device", "0x0010"),
                            ("driver_override", override), ("power/control", power)):
            if value is not None:
                self._put(f"{home}/{name}", value)
        if self.has_iommu:
            self._link(f"{home}/iommu_group", f"../../kernel/iommu_groups/{address[5:7]}")
        self._attach(address, "nvme")

    def state(self, address: str = ADDRESS) -> dict[str, str | None]:
        """Everything that a claim may change."""
        home = f"{DEVICES}/{address}"
        loaded = (name for name in MODULES if self.exists(f"sys/module/{name}"))
        return {"driver": self.link(f"{home}/driver"), "override": self.read(f"{home}/driver_override"),
                "power": self.read(f"{home}/power/control"), "modules": " ".join(loaded)}

    def pull(self, address: str = ADDRESS) -> None:
        """Hot removal: the driver lets go, whatever it was doing."""
        if self.link(f"{DEVICES}/{address}/driver"):
            self._detach(address)
        shutil.rmtree(self.root / DEVICES / address, ignore_errors=True)

    def is_held(self, device: str) -> bool | None:
        """See System."""
        return device in self.held

    def exists(self, path: str) -> bool:
        """See System."""
        if path.startswith("dev/nvme") and self._looks:
            self._looks -= 1
            return False
        return super().exists(path)

    def write(self, path: str, text: str) -> None:
        """See System."""
        self._operation(f"write {path}", lambda: self._write(path, text))

    def run(self, *command: str) -> Ran:
        """See System."""
        if command[0] == "blkid":
            return Ran(2, "")
        try:
            self._operation(" ".join(command), lambda: self._modprobe(command))
        except OSError as error:
            return Ran(1, f"modprobe: {error.strerror}")
        return Ran(0, "")

    def _operation(self, name: str, effect: Any) -> None:
        fate, number = self.fate, self.fate.operations
        fate.operations += 1
        fate.log.append(name)
        if fate.pull_before == number:
            self.pull()
        if fate.crash_before == number:
            raise Crash(name)
        if fate.refuse_from is not None and fate.refuse_from <= number:
            raise OSError(errno.EIO, "Input/output error")
        effect()
        if fate.crash_after == number:
            raise Crash(name)

    def _write(self, path: str, text: str) -> None:
        if not self.exists(path):
            raise OSError(errno.ENOENT, "No such file or directory")
        parts = path.split("/")
        if parts[:4] == ["sys", "bus", "pci", "drivers"]:
            self._bind(parts[4], parts[5], text)
        elif path.endswith("driver_override"):
            self._put(path, text.strip() or "(null)")
        else:
            self._put(path, text.strip())

    def _bind(self, driver: str, verb: str, address: str) -> None:
        home = f"{DEVICES}/{address}"
        current = self.link(f"{home}/driver")
        if not self.exists(home):
            raise OSError(errno.ENODEV, "No such device")
        if verb == "unbind":
            if current != driver:
                raise OSError(errno.ENODEV, "No such device")
            self._detach(address)
            return
        override = self.read(f"{home}/driver_override")
        matches = override == driver or (override in ("(null)", "") and driver == "nvme")
        if current is not None or not matches:
            raise OSError(errno.ENODEV, "No such device")
        self._attach(address, driver)

    def _modprobe(self, command: tuple[str, ...]) -> None:
        driver = command[-1]
        module = f"sys/module/{driver.replace('-', '_')}"
        if "-r" not in command:
            self._put(f"{module}/refcnt", "0")
            self._register(driver)
            return
        # A driver that goes lets all its functions go, whoever bound them.
        for name in self.names(f"{DRIVERS}/{driver}"):
            if ":" in name:
                self._detach(name)
        for tree in (module, f"{DRIVERS}/{driver}"):
            shutil.rmtree(self.root / tree, ignore_errors=True)

    def _register(self, driver: str) -> None:
        for verb in ("bind", "unbind"):
            self._put(f"{DRIVERS}/{driver}/{verb}", "")

    def _attach(self, address: str, driver: str) -> None:
        home, number = f"{DEVICES}/{address}", int(address[5:7], 16) - 1
        self._link(f"{home}/driver", f"../../../bus/pci/drivers/{driver}")
        self._link(f"{DRIVERS}/{driver}/{address}", f"../../../../devices/{address}")
        if driver == "nvme":
            controller = f"{home}/nvme/nvme{number}"
            for name, value in (("serial", f"LAB{number}"), ("model", "QEMU NVMe Ctrl"), ("firmware_rev", "7.2")):
                self._put(f"{controller}/{name}", value)
            self._put(f"{controller}/nvme{number}n1/size", "8")
            self._put(f"sys/class/block/nvme{number}n1/size", "8")
            self._put(f"dev/nvme{number}n1", "")
            self._looks = self.late

    def _detach(self, address: str) -> None:
        home = f"{DEVICES}/{address}"
        driver = self.link(f"{home}/driver")
        (self.root / home / "driver").unlink()
        (self.root / f"{DRIVERS}/{driver}/{address}").unlink()
        for disk in self.names(f"{home}/nvme"):
            shutil.rmtree(self.root / f"sys/class/block/{disk}n1", ignore_errors=True)
            (self.root / f"dev/{disk}n1").unlink()
        shutil.rmtree(self.root / home / "nvme", ignore_errors=True)

    def _put(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def _link(self, path: str, target: str) -> None:
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, link)


class FatefulJournal(Journal):
    """A journal whose writes are operations as well; a torn one leaves half a line on the disk."""

    def __init__(self, directory: Path, kernel: FakeKernel) -> None:
        super().__init__(directory)
        self._kernel = kernel

    def append(self, path: Path, line: dict[str, Any]) -> None:
        """See Journal."""
        fate = self._kernel.fate
        if fate.tear == fate.operations:
            with path.open("ab") as file:
                file.write(f"\n{line}"[:7].encode())
            raise Crash("torn line")
        self._kernel._operation(f"journal {line}", lambda: super(FatefulJournal, self).append(path, line))

    def remove(self, record: Any) -> None:
        """See Journal."""
        self._kernel._operation("journal removed", lambda: super(FatefulJournal, self).remove(record))
