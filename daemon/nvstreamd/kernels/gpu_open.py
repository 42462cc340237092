"""How is a card opened? Its driver through cupy, its kernels by NVRTC, and all that is given back at the end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nvdma.errors import GpuUnavailable
from nvstreamd.kernels.cpu_library import CpuLibrary
from nvstreamd.kernels.gpu_compile import INSTALL, Nvrtc
from nvstreamd.kernels.gpu_device import GpuDevice

# The kernel driver's own file (NVIDIA's README, "The /proc file system").
LOADED = Path("/proc/driver/nvidia/version")


def open_card(number: int, vram: int, kept: Path | None, stack: ExitStack) -> GpuDevice:
    """Card `number`, of whose memory a model may have `vram` bytes. Raises GpuUnavailable, KernelError."""
    try:
        from nvdma.gpu.cupy_driver import CupyDriver
    except ImportError as error:
        if not LOADED.exists():
            # Whoever has no card is not to be told what to install for one.
            raise GpuUnavailable("NVIDIA's driver is not loaded", hint="nothing, where there is no card") from error
        raise GpuUnavailable(f"cupy is missing: {error}", hint=INSTALL) from error
    driver = CupyDriver(number, CpuLibrary().ask)
    driver.open()
    return GpuDevice(driver, Nvrtc(driver.card().capability, kept), stack, vram)
