"""How does the daemon open a function through iommufd, so that another process may use it? (linux/iommufd.h)

The function has a character device of its own, without the group and the container of nvdma.pci.vfio_open; it answers
to nothing before it was bound to an iommufd, which works once. Both are done here, by root, who may open the two files.
What follows asks for no privilege (nvdma.pci.iommufd): the address space and all that is mapped belong to whoever has
the two descriptors, and their memory is counted as that process' own.

Linux 6.6 or later with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV has it; Debian's kernels have neither.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvdma.pci.address import PciAddress
from nvdma.pci.iommufd_calls import BIND, DEVICE_BIND_IOMMUFD, OPTION, OPTION_VALUE, PER_PROCESS, RLIMIT_MODE, SET
from nvdma.pci.mmio import wait_until
from nvdma.pci.vfio_calls import VfioError

ROOT = Path("/")
# Below it.
DEVICES, IOMMU, NODES = "sys/bus/pci/devices", "dev/iommu", "dev/vfio/devices"
NODE_SECONDS = 10.0
# What BIND_IOMMUFD answers (drivers/vfio/device_cdev.c, drivers/iommu/iommufd/device.c).
REMEDIES = {
    errno.EBUSY: "it is open through its group, or its IOMMU group has functions that other drivers hold: "
                 "`nvstreamd doctor` names them",
    errno.EINVAL: "another process has it open, or no IOMMU is at work (VT-d, AMD-Vi in the BIOS; intel_iommu=on)",
    errno.EPERM: "the IOMMU does not check interrupts: switch interrupt remapping on in the BIOS, or take VFIO's group",
}


@dataclass(frozen=True, slots=True)
class OpenedCdev:
    """The two descriptors of a function, see nvdma.pci.iommufd; whoever holds them must close both."""

    iommufd: int
    device: int


def cdev_of(address: PciAddress, root: Path = ROOT) -> str | None:
    """The name of a function's character device, as in vfio0; None when vfio-pci does not hold the function, or the
    kernel has no such devices.
    """
    for path in (root / DEVICES / str(address) / "vfio-dev").glob("vfio*"):
        # The folder is there without CONFIG_VFIO_DEVICE_CDEV too, but with no number for a node.
        if (path / "dev").exists():
            return path.name
    return None


def has_iommufd(address: PciAddress, root: Path = ROOT) -> bool:
    """True when `open_cdev` is a way to a function; known once vfio-pci holds it."""
    return (root / IOMMU).exists() and cdev_of(address, root) is not None


def open_cdev(address: PciAddress, stack: ExitStack, root: Path = ROOT) -> OpenedCdev:
    """Opens an iommufd and a function, bound to each other; `stack` closes both. Raises VfioError.

    Pass both on and close them: while anybody has them open, what a killed process had pinned stays pinned.
    """
    name = cdev_of(address, root)
    if name is None or not (root / IOMMU).exists():
        raise VfioError(f"{address} cannot be opened through iommufd",
                        hint="bind it to vfio-pci, on Linux 6.6 or later with CONFIG_IOMMUFD and "
                             "CONFIG_VFIO_DEVICE_CDEV; VFIO's group works on any kernel")
    # udev makes the node some time after the driver was bound.
    node = root / NODES / name
    wait_until(node.exists, NODE_SECONDS, f"{node} of {address} to appear")
    with ExitStack() as local:
        iommufd = _open(root / IOMMU, local)
        _count_per_process(iommufd)
        device = _open(node, local)
        _bind(device, iommufd, address)
        stack.enter_context(local.pop_all())
    return OpenedCdev(iommufd, device)


def _open(path: Path, stack: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise VfioError(f"{path}: {error.strerror}", hint="only root may open it") from error
    stack.callback(os.close, fd)
    return fd


def _count_per_process(iommufd: int) -> None:
    """Pinned memory counts against RLIMIT_MEMLOCK of the process that pins it, as with VFIO's container.

    By default the kernel adds up what all processes of a user have pinned (io_uring's memory too) and compares the sum
    with the limit of one: a second engine would be refused because of the first. It must be said before anything else.
    """
    try:
        fcntl.ioctl(iommufd, OPTION, OPTION_VALUE.pack(OPTION_VALUE.size, RLIMIT_MODE, SET, 0, 0, PER_PROCESS))
    except OSError as error:
        # Without CAP_SYS_RESOURCE, which a daemon need not have: its engines' limit must do for all of them together.
        if error.errno != errno.EPERM:
            raise VfioError(f"choosing how pinned memory is counted failed: {error.strerror}") from error


def _bind(device: int, iommufd: int, address: PciAddress) -> None:
    try:
        fcntl.ioctl(device, DEVICE_BIND_IOMMUFD, BIND.pack(BIND.size, 0, iommufd, 0))
    except OSError as error:
        raise VfioError(f"binding {address} to an iommufd failed: {error.strerror}",
                        hint=REMEDIES.get(error.errno or 0)) from error
