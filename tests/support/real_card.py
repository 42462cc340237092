"""Is there a real card to test on, and how is it opened? NVSTREAM_TEST_CARD=0 names it by its number."""

from __future__ import annotations

import os
from pathlib import Path

from nvdma.gpu.driver import Driver
from nvstreamd.kernels.gpu_units import Compiler

VARIABLE = "NVSTREAM_TEST_CARD"
# Compiled as for an older card: the path that needs no more than it has.
CAPABILITY = "NVSTREAM_TEST_CAPABILITY"


def named() -> bool:
    """True where a card was named."""
    return VARIABLE in os.environ


def open_card() -> tuple[Driver, Compiler]:
    """The card that was named, and a compiler for it. Raises GpuUnavailable, KernelError."""
    from nvdma.gpu.cupy_driver import CupyDriver
    from nvstreamd.kernels.cpu_library import CpuLibrary
    from nvstreamd.kernels.gpu_compile import Nvrtc

    driver = CupyDriver(int(os.environ.get(VARIABLE, "0")), CpuLibrary().ask)
    driver.open()
    capability = int(os.environ.get(CAPABILITY, driver.card().capability))
    return driver, Nvrtc(capability, Path("build/gpu"))
