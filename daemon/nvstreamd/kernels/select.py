"""Which kernels multiply? The first of those wanted that this machine has, and why others were not taken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.errors import KernelError
from nvstreamd.kernels.cpu_library import LIBRARY, CpuContext, CpuLibrary
from nvstreamd.kernels.cpu_ops import CpuOps
from nvstreamd.kernels.kernel_set import KernelSet


@dataclass(frozen=True, slots=True)
class Kernels:
    """What was chosen, and a line for each that was refused."""

    ops: KernelSet
    notes: tuple[str, ...]


def choose(wanted: Sequence[str], threads: int, stack: ExitStack, library: Path = LIBRARY) -> Kernels:
    """Opens the first of `wanted` ("cpu", "torch") that works. Raises KernelError when none does."""
    notes: list[str] = []
    for name in wanted:
        try:
            ops = _torch(threads, stack) if name == "torch" else _cpu(library, threads, stack)
        except (OSError, ImportError, KernelError) as error:
            notes.append(f"{name} kernels refused: {error}")
        else:
            return Kernels(ops, tuple(notes))
    raise KernelError(f"none of the kernels {', '.join(wanted)} works: {'; '.join(notes)}",
                      "install a C++ compiler and install nvstreamd again, or add torch to `kernels`")


def _cpu(library: Path, threads: int, stack: ExitStack) -> KernelSet:
    if not library.exists():
        raise KernelError("they are not built", "apt-get install g++, then install again")
    found = CpuLibrary(library)
    context = CpuContext(found, found.best(), threads)
    context.open(stack)
    return CpuOps(context)


def _torch(threads: int, stack: ExitStack) -> KernelSet:
    """The only branch that imports torch: 190 MiB and some seconds, which the C++ kernels do without."""
    from nvstreamd.kernels.torch_ops import TorchOps
    from nvstreamd.kernels.workers import Workers

    workers = Workers(threads)
    workers.start(stack)
    return TorchOps(workers)
