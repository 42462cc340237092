"""How close does a product come to the memory's speed? Writes build/bench/kernels.json.

For each type a matrix of 14336 x 4096, larger than the caches. Rounds interleave the product of one row of activations,
and of wider ones, with a plain read of the same bytes by the same threads; figures are medians over the rounds.

    python -m bench.kernels [--threads N] [--rounds 5] [--type Q4_0 ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch

from bench.report import Bar, show, write
from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary
from nvstreamd.kernels.cpu_ops import CpuOps
from nvstreamd.kernels.weight import Weight
from support.random_blocks import random_blocks

ROWS, COLUMNS = 14336, 4096
DRAWN_ROWS = 64
WIDTHS = (1, 2, 4, 8, 16, 64, 512)
FAST = {"F16", "BF16", "Q8_0"}
SLOWEST_BAR, FASTEST_BAR = Bar(0.40), Bar(0.65)


def weight_of(kind: GgmlType) -> Weight:
    """A matrix of a few random rows, over and over: content does not change the time."""
    count = DRAWN_ROWS * COLUMNS // kind.block_length
    rows = random_blocks(kind, count, COLUMNS**-0.5, np.random.default_rng(1))
    return Weight(kind, ROWS, COLUMNS, torch.from_numpy(np.tile(rows, ROWS // DRAWN_ROWS)))


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(ops: CpuOps, weight: Weight, rounds: int) -> tuple[float, dict[int, float]]:
    """Bytes of weights a second: of the plain read, and of the product by its width."""
    nbytes = weight.data.numel()
    reads: list[float] = []
    products: dict[int, list[float]] = {width: [] for width in WIDTHS}
    inputs = {width: (torch.randn(width, COLUMNS), torch.empty(width, ROWS)) for width in WIDTHS}
    for number in range(rounds + 1):
        for width, (x, y) in inputs.items():
            taken = seconds(lambda: ops.linear(x, weight, y))  # noqa: B023
            read = seconds(lambda: ops.context.read(weight.data.data_ptr(), nbytes))
            if number:  # the first round warms up
                products[width].append(taken)
                reads.append(read)
    return nbytes / statistics.median(reads), {width: nbytes / statistics.median(taken)
                                               for width, taken in products.items()}


def run(ops: CpuOps, kinds: Sequence[GgmlType], rounds: int) -> None:
    """All types, the table and the file."""
    ratios: dict[str, float] = {}
    bars: dict[str, Bar] = {}
    plain: dict[str, str] = {"kernel": ops.name}
    rates: dict[str, dict[str, float]] = {}
    for kind in kinds:
        read, products = measure(ops, weight_of(kind), rounds)
        key = f"{kind.name.lower()}_fraction_of_read"
        ratios[key] = products[1] / read
        if kind.name not in ("Q2_K", "Q3_K", "F32"):
            bars[key] = FASTEST_BAR if kind.name in FAST else SLOWEST_BAR
        weights = ROWS * COLUMNS / (ROWS * kind.row_bytes(COLUMNS))
        wide = "  ".join(f"{width}: {width * weights * rate / 1e9:.0f}" for width, rate in products.items())
        plain[f"{kind.name}: read, product GB/s"] = f"{read / 1e9:.1f}, {products[1] / 1e9:.1f}"
        plain[f"{kind.name}: 1e9 multiplications/s by rows"] = wide
        rates[kind.name] = {"read": read, **{str(width): rate for width, rate in products.items()}}
    show(f"products with {ROWS} x {COLUMNS} weights, medians of {rounds}", ratios, bars, plain)
    write("kernels", {**ratios, "kernel": ops.name, "bytes_per_second": rates})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    names = [kind.name for kind in ggml.SUPPORTED]
    parser.add_argument("--type", nargs="+", choices=names, default=names)
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        library = CpuLibrary()
        context = CpuContext(library, library.best(), chosen.threads)
        context.open(stack)
        run(CpuOps(context), [ggml.BY_NAME[name] for name in chosen.type], chosen.rounds)


if __name__ == "__main__":
    main()
