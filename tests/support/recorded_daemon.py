"""How does the daemon run on another machine? On the tree of files that $NVSTREAM_MACHINE names (support.machines).

Its kernel has no module of VFIO's: drives can be read through the kernel's own driver, and cannot be taken from it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from nvstreamd.__main__ import arguments, overrides
from nvstreamd.app import App
from nvstreamd.config import load_config
from nvstreamd.errors import HardwareError
from nvstreamd.hardware.functions import DEVICES
from nvstreamd.hardware.system import Ran
from nvstreamd.hardware.uevents import Uevents
from support.machines import HIDDEN, UEVENTS, Recorded


class WithoutVfio(Recorded):
    """See above."""

    def run(self, *command: str) -> Ran:
        """See System."""
        if command == ("modprobe", "vfio-pci"):
            return Ran(1, "modprobe: FATAL: Module vfio-pci not found")
        return super().run(*command)

    def names(self, path: str) -> list[str]:
        """See System. A slot that HIDDEN names is not seen when the bus is looked at for the first time."""
        found = super().names(path)
        if path == DEVICES and self.exists(HIDDEN):
            found.remove(self.read(HIDDEN))
            (self.root / HIDDEN).unlink()
        return found

    def uevents(self) -> Uevents:
        """See System. Nothing is heard where there is no FIFO."""
        try:
            return PipedUevents(self.root / UEVENTS)
        except OSError as error:
            raise HardwareError(f"uevents cannot be heard: {error}", "make the FIFO") from error


class PipedUevents:
    """See Uevents. A byte in a FIFO is a disk that came."""

    def __init__(self, path: Path) -> None:
        # For writing as well: a FIFO that nobody writes to is at its end, and readable, all the time.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """See Uevents."""
        return self._fd

    def disk_came(self) -> bool:
        """See Uevents."""
        return bool(os.read(self._fd, 4096))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    given = arguments()
    system = WithoutVfio(Path(os.environ["NVSTREAM_MACHINE"]))
    asyncio.run(App(load_config(given.config, overrides(given)), system).run())
