"""What do tests of kernels share? Each set of kernels that this machine has, weights of each type, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.batch import Floats, Heads
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary, InstructionSet
from nvstreamd.kernels.cpu_ops import CpuOps
from nvstreamd.kernels.kernel_set import KernelSet
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
    return Weight(kind, rows, columns, blocks.copy())


def activations(rows: int, columns: int, seed: int = 1) -> Floats:
    """Normal numbers, [rows, columns] float32."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def angles(heads: Heads, positions: Sequence[int]) -> tuple[Floats, Floats]:
    """cos and sin of rows at these positions, as models with a base of 10000 turn them."""
    turned = np.array(positions)[:, None] * 1e4 ** (-np.arange(heads.dim // 2) / heads.dim)
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def product(ops: KernelSet, x: Floats, weight: Weight) -> Floats:
    """x times weight.T, [rows, out]."""
    y = np.full((x.shape[0], weight.rows), np.nan, np.float32)
    ops.linear(x, weight, y)
    return y
