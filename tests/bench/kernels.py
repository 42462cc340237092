"""How close does a product come to the memory's speed? Writes build/bench/kernels.json.

For each type a matrix of 14336 x 4096, larger than the caches. Rounds interleave the product of one row of activations,
and of wider ones, with a plain read of the same bytes by the same threads, and with the product of ggml's CPU backend
where build/llama.cpp is there (make llamacpp); figures are medians over the rounds.

    python -m bench.kernels [--threads N] [--rounds 5] [--type Q4_0 ...] [--alone] [--name kernels]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field

import numpy as np

from bench.peers import PRODUCTS, Peer, ggml_products
from bench.report import Bar, show, write
from nvdma.fence import DONE
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.program import KvGroup, Matrix, Model, Program, Project, Value
from support.random_blocks import random_blocks

ROWS, COLUMNS = 14336, 4096
DRAWN_ROWS = 64
WIDTHS = (1, 2, 4, 8, 16, 64, 512)
FAST = {"F16", "BF16", "Q8_0"}
SLOWEST_BAR, FASTEST_BAR = Bar(0.40), Bar(0.65)


@dataclass(frozen=True, slots=True)
class At:
    """The only tensor of a stage."""

    type: GgmlType
    shape: tuple[int, int] = (ROWS, COLUMNS)
    offset: int = 0


class Product:
    """A product as the engine has it: a stage of one step, over a hidden state of so many rows."""

    def __init__(self, device: CpuDevice, kind: GgmlType) -> None:
        # A matrix of a few random rows, over and over: content does not change the time.
        count = DRAWN_ROWS * COLUMNS // kind.block_length
        rows = random_blocks(kind, count, COLUMNS**-0.5, np.random.default_rng(1))
        self.kind, self.device = kind, device
        self.data = np.tile(rows, ROWS // DRAWN_ROWS)
        self.weights = Span(Memory(MemoryKind.HOST, self.data.ctypes.data, self.data.size), 0, self.data.size)
        hidden = Value(0, COLUMNS)
        device.open(Model(hidden, 1, (KvGroup(1, 1, 2),), ()), self.weights, {}, [max(WIDTHS)])
        step = Project(hidden, None, (Matrix("w", ROWS, COLUMNS),), (Value(1, ROWS),))
        self.ready = device.prepare(Program((step,)), {"w": At(kind)})

    def begin(self, width: int) -> None:
        """Begins passes of `width` rows."""
        x = np.random.default_rng(2).standard_normal((width, COLUMNS), np.float32)
        self.device.begin(Rows([Stretch(row, 1, 0, [[row]]) for row in range(width)], []), ggml.F32, x.tobytes())

    def multiply(self) -> None:
        """One product."""
        self.device.run(self.ready, self.weights, 0, DONE)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@dataclass(slots=True)
class Samples:
    """Seconds, one entry a round: plain reads, our products and ggml's by their width."""

    reads: list[float] = field(default_factory=list)
    ours: dict[int, list[float]] = field(default_factory=lambda: {width: [] for width in WIDTHS})
    theirs: dict[int, list[float]] = field(default_factory=lambda: {width: [] for width in WIDTHS})


def measure(product: Product, rounds: int, peer: Peer | None) -> Samples:
    """All rounds of one type."""
    samples, data = Samples(), product.data
    for number in range(rounds + 1):
        for width in WIDTHS:
            product.begin(width)
            with peer.stopped() if peer else nullcontext():
                # The first of two wakes the threads.
                ours = [seconds(product.multiply) for _ in range(2)][1]
                read = seconds(lambda: product.device.context.read(data.ctypes.data, data.size))
            theirs = peer.seconds(f"{product.kind.id} {width}") if peer else 0.0
            if number:  # the first round warms up
                samples.ours[width].append(ours)
                samples.reads.append(read)
                samples.theirs[width].append(theirs)
    return samples


def lines(kind: GgmlType, samples: Samples, peer: Peer | None) -> dict[str, str]:
    """What the table says of a type beside its ratio."""
    nbytes, ours = ROWS * kind.row_bytes(COLUMNS), {w: statistics.median(t) for w, t in samples.ours.items()}
    found = {
        f"{kind.name}: read, product GB/s":
            f"{nbytes / statistics.median(samples.reads) / 1e9:.1f}, {nbytes / ours[1] / 1e9:.1f}",
        f"{kind.name}: 1e9 multiplications/s by rows":
            "  ".join(f"{width}: {width * ROWS * COLUMNS / taken / 1e9:.0f}" for width, taken in ours.items()),
    }
    if peer:
        found[f"{kind.name}: ggml's time over ours by rows"] = "  ".join(
            f"{width}: {statistics.median(taken) / ours[width]:.2f}" for width, taken in samples.theirs.items())
    return found


def run(device: CpuDevice, kinds: Sequence[GgmlType], rounds: int, peer: Peer | None, name: str) -> None:
    """All types, the table and the file."""
    ratios: dict[str, float] = {}
    bars: dict[str, Bar] = {}
    plain = {"kernel": device.name, "beside": "ggml's CPU backend, native build" if peer else "nothing: make llamacpp"}
    rounds_of: dict[str, object] = {}
    for kind in kinds:
        samples = measure(Product(device, kind), rounds, peer)
        key = f"{kind.name.lower()}_fraction_of_read"
        ratios[key] = statistics.median(samples.reads) / statistics.median(samples.ours[1])
        if kind.name not in ("Q2_K", "Q3_K", "F32"):
            bars[key] = FASTEST_BAR if kind.name in FAST else SLOWEST_BAR
        plain |= lines(kind, samples, peer)
        rounds_of[kind.name] = asdict(samples)
    show(f"products with {ROWS} x {COLUMNS} weights, medians of {rounds}", ratios, bars, plain)
    write(name, {**ratios, "plain": plain, "seconds": rounds_of})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    names = [kind.name for kind in ggml.SUPPORTED]
    parser.add_argument("--type", nargs="+", choices=names, default=names)
    parser.add_argument("--alone", action="store_true", help="ggml's products are not measured beside")
    parser.add_argument("--name", default="kernels", help="what is written: build/bench/NAME.json")
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        library = CpuLibrary()
        context = CpuContext(library, library.best(), chosen.threads)
        context.open(stack)
        peer = None
        if PRODUCTS.exists() and not chosen.alone:
            peer = stack.enter_context(ggml_products(chosen.threads, COLUMNS, ROWS))
        run(CpuDevice(context), [ggml.BY_NAME[name] for name in chosen.type], chosen.rounds, peer, chosen.name)


if __name__ == "__main__":
    main()
