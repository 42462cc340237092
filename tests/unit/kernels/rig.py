"""What do tests of kernels share? Each set of kernels that this machine has, weights of each type, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary, InstructionSet
from nvstreamd.kernels.cpu_ops import CpuOps
from nvstreamd.kernels.select import AnyOps
from nvstreamd.kernels.torch_ops import TorchOps
from nvstreamd.kernels.weight import Weight
from nvstreamd.kernels.workers import Workers
from support.random_blocks import random_blocks

INSTRUCTION_SETS = [found for found in CpuLibrary().instruction_sets() if found.usable]


@contextmanager
def cpu_ops(kernel: InstructionSet, threads: int = 1) -> Iterator[CpuOps]:
    """The C++ kernels for one instruction set."""
    with ExitStack() as stack:
        context = CpuContext(CpuLibrary(), kernel, threads)
        context.open(stack)
        yield CpuOps(context)


@contextmanager
def torch_ops(threads: int = 1) -> Iterator[TorchOps]:
    """The torch reference."""
    with ExitStack() as stack:
        workers = Workers(threads)
        workers.start(stack)
        yield TorchOps(workers)


def every_kernel() -> dict[str, Callable[[int], object]]:
    """By name: what makes the ops of a number of threads, as a context manager."""
    made: dict[str, Callable[[int], object]] = {"torch": torch_ops}
    for kernel in INSTRUCTION_SETS:
        made[kernel.name] = lambda threads, kernel=kernel: cpu_ops(kernel, threads)
    return made


def random_weight(kind: GgmlType, rows: int, columns: int, seed: int = 0) -> Weight:
    """A matrix of random blocks, entries of about 1 / sqrt(columns)."""
    rng = np.random.default_rng([seed, rows, columns])
    blocks = random_blocks(kind, rows * columns // kind.block_length, columns**-0.5, rng)
    return Weight(kind, rows, columns, torch.from_numpy(blocks.copy()))


def activations(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers, [rows, columns] float32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def product(ops: AnyOps, x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x times weight.T, [rows, out]."""
    y = torch.full((x.shape[0], weight.rows), torch.nan)
    ops.linear(x, weight, y)
    return y
