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

ADDRESS = "0000:01:00.0"
SERIAL = "LAB0"
DEVICE = f"sys/bus/pci/devices/{ADDRESS}"
BOOT = "proc/sys/kernel/random/boot_id"


class Crash(BaseException):
    """The process is gone: nothing that it would have done happens."""


@dataclass(slots=True)
class Fate:
    """What happens at which operation, counted from 0: a crash before or after it, or the drive is pulled out."""

    crash_before: int | None = None
    crash_after: int | None = None
    pull_before: int | None = None
    tear: int | None = None
    operations: int = 0
    log: list[str] = field(default_factory=list)


class FakeKernel(System):
    """A machine below `root` with one NVMe drive in its own IOMMU group, held by the driver nvme."""

    def __init__(self, root: Path, fate: Fate | None = None) -> None:
        super().__init__(root)
        self.fate = fate or Fate()

    def boot(self, boot_id: str = "boot-1", override: str = "(null)", power: str = "on") -> None:
        """The state after a start of the machine; files outside sysfs and procfs stay."""
        for tree in ("sys", "proc", "dev"):
            shutil.rmtree(self.root / tree, ignore_errors=True)
        self._put(f"{DEVICE}/class", "0x010802")
        self._put(f"{DEVICE}/vendor", "0x1b36")
        self._put(f"{DEVICE}/device", "0x0010")
        self._put(f"{DEVICE}/driver_override", override)
        self._put(f"{DEVICE}/power/control", power)
        self._put(BOOT, boot_id)
        for driver in ("nvme", "other"):
            self._put(f"sys/bus/pci/drivers/{driver}/bind", "")
            self._put(f"sys/bus/pci/drivers/{driver}/unbind", "")
        self._link(f"{DEVICE}/iommu_group", "../../kernel/iommu_groups/7")
        self._attach("nvme")

    def state(self) -> dict[str, str | None]:
        """Everything that a claim may change."""
        return {"driver": self.link(f"{DEVICE}/driver"), "override": self.read(f"{DEVICE}/driver_override"),
                "power": self.read(f"{DEVICE}/power/control"), "vfio": str(self.exists("sys/module/vfio_pci"))}

    def pull(self) -> None:
        """Hot removal."""
        shutil.rmtree(self.root / DEVICE, ignore_errors=True)

    def is_held(self, device: str) -> bool | None:
        """See System: nobody holds it."""
        return False

    def write(self, path: str, text: str) -> None:
        """See System."""
        self._operation(f"write {path}", lambda: self._write(path, text))

    def run(self, *command: str) -> Ran:
        """See System."""
        if command[0] == "blkid":
            return Ran(2, "")
        self._operation(" ".join(command), lambda: self._modprobe(command))
        return Ran(0, "")

    def _operation(self, name: str, effect: Any) -> None:
        fate, number = self.fate, self.fate.operations
        fate.operations += 1
        fate.log.append(name)
        if fate.pull_before == number:
            self.pull()
        if fate.crash_before == number:
            raise Crash(name)
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
        current = self.link(f"{DEVICE}/driver")
        if address != ADDRESS or not self.exists(DEVICE):
            raise OSError(errno.ENODEV, "No such device")
        if verb == "unbind":
            if current != driver:
                raise OSError(errno.ENODEV, "No such device")
            (self.root / DEVICE / "driver").unlink()
            shutil.rmtree(self.root / DEVICE / "nvme", ignore_errors=True)
            return
        override = self.read(f"{DEVICE}/driver_override")
        matches = override == driver or (override in ("(null)", "") and driver == "nvme")
        if current is not None or not matches:
            raise OSError(errno.ENODEV, "No such device")
        self._attach(driver)

    def _modprobe(self, command: tuple[str, ...]) -> None:
        if "-r" in command:
            shutil.rmtree(self.root / "sys/module/vfio_pci", ignore_errors=True)
            shutil.rmtree(self.root / "sys/bus/pci/drivers/vfio-pci", ignore_errors=True)
            return
        self._put("sys/module/vfio_pci/refcnt", "0")
        for verb in ("bind", "unbind"):
            self._put(f"sys/bus/pci/drivers/vfio-pci/{verb}", "")

    def _attach(self, driver: str) -> None:
        self._link(f"{DEVICE}/driver", f"../../../bus/pci/drivers/{driver}")
        if driver == "nvme":
            for name, value in (("serial", SERIAL), ("model", "QEMU NVMe Ctrl"), ("firmware_rev", "7.2")):
                self._put(f"{DEVICE}/nvme/nvme0/{name}", value)
            self._put(f"{DEVICE}/nvme/nvme0/nvme0n1/size", "8")
            self._put("sys/class/block/nvme0n1/size", "8")

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
