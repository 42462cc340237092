"""How does the daemon open a function that is bound to our module, so that another process may use it?"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from nvdma.pci.address import PciAddress, driver_of
from nvdma.pci.kmod_calls import ModuleError, caps_of
from nvdma.pci.mmio import wait_until

NODE_SECONDS = 10.0


def open_node(address: PciAddress, stack: ExitStack, folder: Path = Path("/dev/nvstream")) -> int:
    """The descriptor of a function. Raises ModuleError, also for a module of another release."""
    path, driver = folder / str(address), driver_of(address)
    if driver != "nvstream":
        raise ModuleError(f"{address} is held by {driver}, not by nvstream", hint="claim it first: `nvstreamd claim`")
    wait_until(path.exists, NODE_SECONDS, f"{path} to appear")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "only root may open it, and one process at a time"
        raise ModuleError(f"{path}: {error.strerror}", hint=hint) from error
    stack.callback(os.close, fd)
    caps_of(fd)
    return fd
