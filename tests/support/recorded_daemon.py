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
from nvstreamd.hardware.system import Ran
from support.machines import Recorded


class WithoutVfio(Recorded):
    """See above."""

    def run(self, *command: str) -> Ran:
        """See System."""
        if command == ("modprobe", "vfio-pci"):
            return Ran(1, "modprobe: FATAL: Module vfio-pci not found")
        return super().run(*command)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    given = arguments()
    system = WithoutVfio(Path(os.environ["NVSTREAM_MACHINE"]))
    asyncio.run(App(load_config(given.config, overrides(given)), system).run())
