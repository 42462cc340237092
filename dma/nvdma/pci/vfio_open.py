"""How does the daemon open a function that is bound to vfio-pci, so that another process may use it?"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvdma.pci.address import PciAddress, driver_of
from nvdma.pci.mmio import wait_until
from nvdma.pci.vfio_calls import (
    CHECK_EXTENSION,
    GET_API_VERSION,
    GROUP_GET_DEVICE_FD,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    SET_IOMMU,
    VfioError,
    call,
)

API_VERSION = 0
TYPE1V2 = 3
GROUP_STATUS = struct.Struct("=II")  # argsz, flags
GROUP_VIABLE = 1 << 0
NODE_SECONDS = 10.0
CONTAINER_PATH = Path("/dev/vfio/vfio")


@dataclass(frozen=True, slots=True)
class Opened:
    """The two descriptors of a function, see nvdma.pci.vfio; whoever holds them must close both."""

    container: int
    device: int


def group_of(address: PciAddress, devices: Path = Path("/sys/bus/pci/devices")) -> str:
    """The number of the IOMMU group of a function. Raises VfioError when it has none."""
    link = devices / str(address) / "iommu_group"
    try:
        return os.path.basename(os.readlink(link))
    except OSError as error:
        raise VfioError(f"{address} is in no IOMMU group",
                        hint="switch the IOMMU on: in the BIOS (VT-d, AMD-Vi) and on the kernel's command line "
                             "(intel_iommu=on)") from error


def _check_driver(address: PciAddress) -> None:
    driver = driver_of(address)
    if driver != "vfio-pci":
        raise VfioError(f"{address} is held by {driver}, not by vfio-pci", hint="claim it first: `nvstreamd claim`")


def has_containers() -> bool:
    """True when the kernel has VFIO's containers, which `open_function` needs; newer ones may have iommufd alone."""
    return CONTAINER_PATH.exists()


def open_function(address: PciAddress, stack: ExitStack) -> Opened:
    """Opens container and device of a function in an address space of its own; `stack` closes both."""
    _check_driver(address)
    group_path = CONTAINER_PATH.parent / group_of(address)
    # udev makes the node some time after the driver was bound.
    wait_until(group_path.exists, NODE_SECONDS, f"{group_path} of {address} to appear")
    with ExitStack() as local:
        container = _open(CONTAINER_PATH, local)
        if call(container, GET_API_VERSION, 0, "asking for VFIO's version") != API_VERSION:
            raise VfioError("the kernel speaks another version of VFIO", hint="use Linux 5.15 or later")
        if not call(container, CHECK_EXTENSION, TYPE1V2, "asking for type1"):
            raise VfioError("the kernel's VFIO has no type1 IOMMU", hint="modprobe vfio_iommu_type1")
        group = _open(group_path, local)
        _check_viable(group, address)
        call(group, GROUP_SET_CONTAINER, struct.pack("=i", container), f"giving {address} an address space")
        call(container, SET_IOMMU, TYPE1V2, "setting up the IOMMU")
        # The device's descriptor keeps the group open; its own descriptor is needed no more.
        device = call(group, GROUP_GET_DEVICE_FD, bytearray(f"{address}\0".encode()), f"opening {address}")
        os.close(group)
        local.pop_all()
    stack.callback(os.close, container)
    stack.callback(os.close, device)
    return Opened(container, device)


def _open(path: Path, stack: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise VfioError(f"{path}: {error.strerror}",
                        hint="only root may open it, and only one process at a time") from error
    stack.callback(os.close, fd)
    return fd


def _check_viable(group: int, address: PciAddress) -> None:
    answer = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    call(group, GROUP_GET_STATUS, answer, f"asking for the group of {address}")
    if not GROUP_STATUS.unpack(answer)[1] & GROUP_VIABLE:
        raise VfioError(f"the IOMMU group of {address} has functions that other drivers hold",
                        hint="`nvstreamd doctor` names them: unbind them or move the drive to another slot")
