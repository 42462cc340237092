"""Which kernels multiply? The first of those wanted that this machine has, and why others were not taken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvdma.errors import DmaError
from nvstreamd.errors import KernelError
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.cpu_library import LIBRARY, CpuContext, CpuLibrary
from nvstreamd.kernels.device import Device

if TYPE_CHECKING:
    from nvstreamd.kernels.gpu_device import GpuDevice


@dataclass(frozen=True, slots=True)
class CardWishes:
    """Which card, by its number, and how many bytes of it at most, 0 for what is free.

    `kept` is a folder for compiled kernels, or None.
    """

    number: int = 0
    vram: int = 0
    kept: Path | None = None


ANY_CARD = CardWishes()
# What a card's kernels are called in the configuration.
CARD = "gpu"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The device that was chosen, and a line for each that was refused."""

    device: Device
    notes: tuple[str, ...]


def choose(wanted: Sequence[str], threads: int, stack: ExitStack, library: Path = LIBRARY,
           card: CardWishes = ANY_CARD) -> Kernels:
    """Opens the first of `wanted` ("gpu", "cpu", "torch") that works. Raises KernelError when none does."""
    notes: list[str] = []
    for name in wanted:
        try:
            device = (_torch(threads, stack) if name == "torch" else
                      _beside(_gpu(card, stack), library, threads, stack, notes) if name == CARD else
                      _cpu(library, threads, stack))
        except (OSError, ImportError, KernelError, DmaError) as error:
            notes.append(f"{name} kernels refused: {error}")
        else:
            return Kernels(device, tuple(notes))
    raise KernelError(f"none of the kernels {', '.join(wanted)} works: {'; '.join(notes)}",
                      "install a C++ compiler and install nvstreamd again, or add torch to `kernels`")


def _gpu(card: CardWishes, stack: ExitStack) -> GpuDevice:
    """The only branch that imports cupy, which asks the driver for its cards."""
    from nvstreamd.kernels.gpu_open import open_card

    return open_card(card.number, card.vram, card.kept, stack)


def _beside(card: GpuDevice, library: Path, threads: int, stack: ExitStack, notes: list[str]) -> Device:
    """The card, and the processor beside it where its kernels can be had."""
    from nvstreamd.kernels.hybrid_device import HybridDevice

    try:
        return HybridDevice(card, _cpu(library, beside_a_card(threads), stack))
    except (OSError, KernelError) as error:
        notes.append(f"{CARD} kernels have no processor beside them: {error}")
        return card


def beside_a_card(threads: int) -> int:
    """Threads that multiply, of so many processors, while others bring weights to a card: one in eight is theirs.

    All of a product's threads wait for the last: where one has to share its processor, all take as long as it does.
    """
    return max(1, threads - max(1, threads // 8))


def _cpu(library: Path, threads: int, stack: ExitStack) -> CpuDevice:
    if not library.exists():
        raise KernelError("they are not built", "apt-get install g++, then install again")
    found = CpuLibrary(library)
    context = CpuContext(found, found.best(), threads)
    context.open(stack)
    return CpuDevice(context)


def _torch(threads: int, stack: ExitStack) -> Device:
    """The only branch that imports torch: 190 MiB and some seconds, which the C++ kernels do without."""
    from nvstreamd.kernels.torch_device import TorchDevice

    return TorchDevice(threads)
