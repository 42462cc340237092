"""Which kernels multiply? The first of those wanted that this machine has, and why others were not taken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from nvstreamd.errors import KernelError
from nvstreamd.kernels.cpu_library import LIBRARY, CpuContext, CpuLibrary
from nvstreamd.kernels.cpu_ops import CpuOps
from nvstreamd.kernels.torch_ops import TorchOps
from nvstreamd.kernels.workers import Workers

AnyOps = CpuOps | TorchOps


@dataclass(frozen=True, slots=True)
class Kernels:
    """What was chosen, and a line for each that was refused."""

    ops: AnyOps
    notes: tuple[str, ...]


def choose(wanted: Sequence[str], threads: int, stack: ExitStack, library: Path = LIBRARY) -> Kernels:
    """Opens the first of `wanted` ("cpu", "torch") that works. Raises KernelError when none does."""
    notes: list[str] = []
    # torch works beside the kernels on small things only; threads of its own would spin against theirs.
    torch.set_num_threads(1)
    for name in wanted:
        if name == "torch":
            workers = Workers(threads)
            workers.start(stack)
            return Kernels(TorchOps(workers), tuple(notes))
        if not library.exists():
            notes.append("cpu kernels refused: they are not built (apt-get install g++, then install again)")
            continue
        try:
            found = CpuLibrary(library)
            context = CpuContext(found, found.best(), threads)
            context.open(stack)
        except (OSError, KernelError) as error:
            notes.append(f"cpu kernels refused: {error}")
            continue
        return Kernels(CpuOps(context), tuple(notes))
    raise KernelError(f"none of the kernels {', '.join(wanted)} works: {'; '.join(notes)}",
                      "add torch to `kernels` in the configuration")
