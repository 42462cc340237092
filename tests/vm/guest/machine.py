"""How do tests in the guest look at it, and put it right, without the code that they test?"""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from nvdma.pci.address import PciAddress

DEVICES = Path("/sys/bus/pci/devices")
SECONDS = 20.0
# linux/netlink.h; its first group is what the kernel itself says.
NETLINK_KOBJECT_UEVENT, KERNEL = 15, 1
LONGEST_EVENT = 8192
# The function whose BAR 2 stands in for a GPU's memory: lab.py puts it into this slot.
BAR_OWNER = PciAddress(0, 0, 0x1E, 0)
NOBODY = 65534


def wait_until(is_so: Callable[[], object], what: str) -> None:
    """Looks whenever the kernel has said something: a loop would take a processor from QEMU, which is the hardware."""
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT) as said:
        said.bind((0, KERNEL))
        while not is_so():
            left = deadline - time.monotonic()
            assert left > 0, f"waited {SECONDS} s for {what}"
            if select.select([said], [], [], left)[0]:
                said.recv(LONGEST_EVENT)


def live_controllers() -> dict[str, PciAddress]:
    """NVMe functions by serial number, those that the kernel's driver knows by now."""
    return {(path / "serial").read_text().strip(): PciAddress.parse((path / "address").read_text().strip())
            for path in Path("/sys/class/nvme").glob("nvme*") if is_live(path)}


def controllers(count: int = 2) -> dict[str, PciAddress]:
    """NVMe functions by serial number; waits until the kernel's driver knows all of them."""
    wait_until(lambda: len(live_controllers()) == count, f"the kernel to know {count} drives")
    return live_controllers()


def is_live(controller: Path) -> bool:
    """Whether the kernel's driver knows a controller by now; its serial number is empty, or an error, before."""
    return (controller / "state").read_text().strip() == "live"


def driver(address: PciAddress) -> str | None:
    """The driver that holds a function."""
    link = DEVICES / str(address) / "driver"
    return os.path.basename(os.readlink(link)) if link.exists() else None


def hand_over(address: PciAddress, name: str) -> None:
    """From whatever driver holds it to another."""
    (DEVICES / str(address) / "driver_override").write_text(f"{name}\n")
    if driver(address):
        (DEVICES / str(address) / "driver/unbind").write_text(str(address))
    Path("/sys/bus/pci/drivers_probe").write_text(str(address))
    assert driver(address) == (name or "nvme")


def hold_no_more(address: PciAddress) -> None:
    """Away from any driver."""
    (DEVICES / str(address) / "driver_override").write_text("\n")
    if driver(address):
        (DEVICES / str(address) / "driver/unbind").write_text(str(address))


def give_back(address: PciAddress) -> None:
    """To the kernel's own driver."""
    if driver(address) != "nvme":
        hand_over(address, "")


def command_register(address: PciAddress) -> int:
    """The command register of a function's configuration space."""
    return int.from_bytes((DEVICES / str(address) / "config").read_bytes()[4:6], "little")


def bar_address(address: PciAddress, bar: int) -> int:
    """The physical address of a BAR."""
    return int((DEVICES / str(address) / "resource").read_text().splitlines()[bar].split()[0], 16)


def bar_bytes(address: PciAddress, bar: int) -> int:
    """The size of a BAR."""
    return (DEVICES / str(address) / f"resource{bar}").stat().st_size


def answer_to_bars(address: PciAddress, does: int = 1) -> None:
    """Switches the memory space of a function on or off, whose driver, if it has one, does not notice."""
    command = command_register(address) & ~(1 << 1) | does << 1
    # Unbuffered: configuration space is written in the pieces that are asked for.
    with (DEVICES / str(address) / "config").open("r+b", buffering=0) as config:
        config.seek(4)
        config.write(command.to_bytes(2, "little"))


def block_device(address: PciAddress) -> Path:
    """The only namespace of a controller that the kernel's driver holds; the driver looks for it after it has that."""
    controller = DEVICES / str(address) / "nvme"
    wait_until(lambda: any(controller.glob("nvme*/nvme*n1")), f"a namespace of {address}")
    return Path("/dev") / next(controller.glob("nvme*/nvme*n1")).name


def first_bytes(address: PciAddress, nbytes: int) -> bytes:
    """What the kernel's driver reads from a drive; without KVM every MiB takes its time."""
    with block_device(address).open("rb") as disk:
        return disk.read(nbytes)


def without_privilege(action: Callable[[], None]) -> None:
    """Carries it out in a child of another user, as an engine is. Fails with what failed there."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
            os._exit(0)
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, errors="replace") as words:
        said = words.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said


def let_everybody_run_python(scratch: Path) -> None:
    """Also one below a directory like /root that is closed to others: what it holds is shown in one that is open."""
    python = Path(sys.executable).resolve()
    for closed, below in zip(list(python.parents)[:0:-1], list(python.parents)[-2::-1], strict=True):
        if closed.stat().st_mode & stat.S_IXOTH:
            continue
        kept = scratch / "interpreter"
        kept.mkdir()
        for command in (["mount", "--rbind", below, kept], ["mount", "-t", "tmpfs", "-o", "mode=755", "none", closed],
                        ["mkdir", below], ["mount", "--rbind", kept, below]):
            subprocess.run(command, check=True)
        return
