"""How close do a card's products come to its memory's speed, and to cuBLAS? Every figure with its bits checked.

Weights lie there several times, more than the second-level cache holds, and launches go round them as a graph. Beside
them: a kernel that only reads as many bytes, and torch's bf16 products of the same shape (cuBLAS).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import cupy
import numpy as np
import torch

from bench.report import Bar
from nvdma.fence import DONE
from nvdma.gpu.driver import Driver
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.gpu_form import Form, up
from nvstreamd.kernels.gpu_launch import Functions, Launch, products, tiles_of
from nvstreamd.kernels.gpu_pass import Buffers, activations_of
from nvstreamd.kernels.gpu_structs import GpuMatrix, GpuProducts, GpuRows
from nvstreamd.kernels.gpu_units import Compiler
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.program import KvGroup, Matrix, Model, Program, Project, Value
from support.random_blocks import random_blocks

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (8192, 28672))
COUNTED = {(14336, 4096), (8192, 28672)}
KINDS = (ggml.Q8_0, ggml.Q4_0, ggml.Q4_K, ggml.Q6_K)
OTHERS = (ggml.Q4_1, ggml.Q5_0, ggml.Q5_1, ggml.Q2_K, ggml.Q3_K, ggml.Q5_K, ggml.IQ4_NL, ggml.IQ4_XS, ggml.MXFP4)
WIDTHS = (1, 4, 8, 16, 32, 64, 512)
DRAWN = 64
COPIED_BYTES = 400 << 20
LAUNCHES = 24
ONE = {"Q8_0": 0.90, "Q4_0": 0.85, "Q4_K": 0.75, "Q6_K": 0.78}
EIGHT = {"Q8_0": 0.88, "Q4_0": 0.78, "Q4_K": 0.66, "Q6_K": 0.60}
WIDE = {"Q8_0": 0.36, "Q4_0": 0.33, "Q4_K": 0.27, "Q6_K": 0.18}
BARS = {f"{name.lower()}_{what}": Bar(least) for table, what in (
    (ONE, "narrow_fraction_of_read"), (EIGHT, "narrow8_fraction_of_read"), (WIDE, "wide512_over_cublas_bf16"))
    for name, least in table.items()}
READ = r"""
extern "C" __global__ void read_all(const uint4* p, size_t n, uint4* out) {
    uint4 a = {0, 0, 0, 0};
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
        for (int k = 0; k < 4; k++) v[k] = __ldcs(p + i + k * step);
        for (int k = 0; k < 4; k++) { a.x ^= v[k].x; a.y ^= v[k].y; a.z ^= v[k].z; a.w ^= v[k].w; }
    }
    for (; i < n; i += step) { uint4 v = p[i]; a.x ^= v.x; a.y ^= v.y; a.z ^= v.z; a.w ^= v.w; }
    if (a.x == 0x12345678 && a.y == 0x9abcdef0) *out = a;
}
"""


@dataclass(frozen=True, slots=True)
class At:
    """The only tensor of a stage."""

    type: GgmlType
    shape: tuple[int, int]
    offset: int = 0


def microseconds(work: Callable[[int], None], stream: int, driver: Driver, rounds: int) -> float:
    """What one of LAUNCHES launches takes, which are a graph: the median of its replays."""
    driver.begin_capture(stream)
    for number in range(LAUNCHES):
        work(number)
    graph = driver.end_capture(stream)
    found = []
    with cupy.cuda.ExternalStream(stream):
        for number in range(rounds + 2):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            driver.run_graph(graph, stream)
            end.record()
            end.synchronize()
            if number > 1:  # two warm up
                found.append(cupy.cuda.get_elapsed_time(begin, end) * 1e3 / LAUNCHES)
    driver.drop_graph(graph)
    return float(statistics.median(found))


class Case:
    """A matrix on the card, several times, and the same few rows for the CPU's kernels."""

    def __init__(self, device: GpuDevice, kind: GgmlType, rows: int, columns: int) -> None:
        self.device, self.kind, self.rows, self.columns = device, kind, rows, columns
        count = DRAWN * columns // kind.block_length
        self.few = random_blocks(kind, count, columns**-0.5, np.random.default_rng(1))
        self.data = np.tile(self.few, rows // DRAWN)
        self.tensors = {"w": At(kind, (rows, columns))}
        self.form = Form.of(self.tensors)
        copies = max(2, COPIED_BYTES // self.data.nbytes)
        self.weights = [self._bring() for _ in range(copies)]
        self.y = cupy.zeros((512, rows), np.float32)

    def _bring(self) -> int:
        address = int(cupy.cuda.runtime.malloc(self.form.nbytes))
        span = Span(Memory(MemoryKind.HOST, self.data.ctypes.data, self.data.size), 0, self.data.size)
        to = Span(Memory(MemoryKind.VRAM, address, self.form.nbytes), 0, self.form.nbytes)
        assert self.device.own.bring(self.tensors, span, to).wait(60.0)
        return address

    def close(self) -> None:
        """Gives the copies back."""
        for address in self.weights:
            cupy.cuda.runtime.free(address)

    def launches(self, functions: Functions, buffers: Buffers, x: cupy.ndarray) -> tuple[Launch, list[Launch]]:
        """The quantisation of x, and a product by each copy."""
        width = x.shape[0]
        quantised = activations_of(buffers, f"x {self.columns}", width, 512, self.columns)
        rows = GpuRows(x=x.data.ptr, columns=self.columns, used=1, quantised=quantised)
        across = up(self.columns, 256) if width <= 16 else 1
        prepare = Launch(functions.of_rows("prepare_rows"), (across, width, 1), 256, 0, rows)
        found = []
        for address in self.weights:
            call = GpuProducts(x=quantised, rows=width, columns=self.columns, blocks=self.columns // 32,
                               quads=up(self.columns, 128))
            matrix = GpuMatrix(data=address, y=self.y.data.ptr, rows=self.rows, stride=self.rows,
                               tiles=tiles_of(self.rows), type=self.kind.id)
            found.append(products(functions, self.kind, call, [matrix]))
        return prepare, found


def reference(case: Case, x: Floats) -> Floats:
    """What the CPU's kernels say of the few rows."""
    with ExitStack() as stack:
        library = CpuLibrary()
        context = CpuContext(library, library.best(), 16)
        context.open(stack)
        device: Device = CpuDevice(context)
        hidden = Value(0, case.columns)
        span = Span(Memory(MemoryKind.HOST, case.few.ctypes.data, case.few.size), 0, case.few.size)
        device.open(Model(hidden, 1, (KvGroup(1, 1, 2),), ()), span, {}, [x.shape[0]])
        step = Project(hidden, None, (Matrix("w", DRAWN, case.columns),), (Value(1, DRAWN),))
        ready = device.prepare(Program((step,)), {"w": At(case.kind, (DRAWN, case.columns))})
        device.begin(Rows([Stretch(row, 1, 0, [[row]]) for row in range(x.shape[0])], []), ggml.F32, x.tobytes())
        device.run(ready, span, 0, DONE)
        return device.peek(Value(1, DRAWN))


class Bench:
    """All shapes of all types."""

    def __init__(self, driver: Driver, compiler: Compiler, rounds: int, stack: ExitStack) -> None:
        self.driver, self.rounds = driver, rounds
        self.device = GpuDevice(driver, compiler, stack)
        self.functions = Functions(driver, compiler)
        self.buffers = Buffers(driver)
        self.read = cupy.RawKernel(READ, "read_all")
        self.stream = self.device.stream
        self.ratios: dict[str, list[float]] = {}
        self.plain: dict[str, str] = {}
        self.cublas: dict[tuple[int, int], float] = {}
        self.wrong: list[str] = []

    def run(self, kind: GgmlType, shape: tuple[int, int]) -> None:
        """One type and shape."""
        case = Case(self.device, kind, *shape)
        nbytes = case.data.nbytes
        with cupy.cuda.ExternalStream(self.stream):
            read = min(self._read(case, many) for many in (4, 8))
        said = [f"read {nbytes / read / 1e3:.0f} GB/s"]
        for width in WIDTHS:
            if width > 64 and shape not in COUNTED:
                continue
            took = self._product(case, width)
            if width <= 16:
                said.append(f"{width}: {read / took:.2f}")
            else:
                said.append(f"{width}: {2e-6 * width * shape[0] * shape[1] / took:.0f} TOP/s")
            self._note(kind, shape, width, read, took)
        self.plain[f"{kind.name} {shape[0]}x{shape[1]}, of read by rows"] = "  ".join(said)
        case.close()

    def _read(self, case: Case, many: int) -> float:
        """Microseconds of a kernel that only reads: the copies one after the other, in their packed form."""
        nbytes, out = case.form.nbytes, cupy.zeros(4, np.uint32)
        cupy.cuda.runtime.deviceSynchronize()
        scale = case.data.nbytes / nbytes

        def once(number: int) -> None:
            at = cupy.cuda.UnownedMemory(case.weights[number % len(case.weights)], nbytes, self)
            source = cupy.ndarray(nbytes // 16 * 4, np.uint32, cupy.cuda.MemoryPointer(at, 0))
            self.read((132 * many,), (256,), (source, np.uint64(nbytes // 16), out))

        return microseconds(once, self.stream, self.driver, self.rounds) * scale

    def _product(self, case: Case, width: int) -> float:
        x = np.random.default_rng(width).standard_normal((width, case.columns), np.float32)
        on_card = cupy.asarray(x)
        cupy.cuda.runtime.deviceSynchronize()
        prepare, launches = case.launches(self.functions, self.buffers, on_card)
        prepare.begin(self.driver, self.stream)
        launches[0].begin(self.driver, self.stream)
        cupy.cuda.runtime.deviceSynchronize()
        found = case.y.ravel()[: width * case.rows].get().reshape(width, case.rows)
        wanted = np.tile(reference(case, x), (1, case.rows // DRAWN))
        if not np.array_equal(found.view(np.int32), wanted.view(np.int32)):
            self.wrong.append(f"{case.kind.name} {case.rows}x{case.columns}, {width} rows")
        return microseconds(lambda n: launches[n % len(launches)].begin(self.driver, self.stream), self.stream,
                            self.driver, self.rounds)

    def _note(self, kind: GgmlType, shape: tuple[int, int], width: int, read: float, took: float) -> None:
        if shape not in COUNTED or kind not in KINDS:
            return
        name = kind.name.lower()
        if width == 1:
            self.ratios.setdefault(f"{name}_narrow_fraction_of_read", []).append(read / took)
        if width == 8:
            self.ratios.setdefault(f"{name}_narrow8_fraction_of_read", []).append(read / took)
        if width == 512:
            self.ratios.setdefault(f"{name}_wide512_over_cublas_bf16", []).append(self.bf16(*shape) / took)

    def bf16(self, rows: int, columns: int) -> float:
        """Microseconds of cuBLAS for 512 rows of activations."""
        if (rows, columns) not in self.cublas:
            weights = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
            x = torch.randn(512, columns, device="cuda", dtype=torch.bfloat16)
            took = []
            for number in range(self.rounds + 3):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begin.record()
                for _ in range(LAUNCHES):
                    torch.matmul(x, weights.T)
                end.record()
                end.synchronize()
                if number > 2:
                    took.append(begin.elapsed_time(end) * 1e3 / LAUNCHES)
            self.cublas[rows, columns] = statistics.median(took)
            self.plain[f"cuBLAS bf16, 512 rows, {rows}x{columns}"] = f"{self.cublas[rows, columns]:.0f} us"
        return self.cublas[rows, columns]


def measure(driver: Driver, compiler: Compiler, rounds: int, kinds: Sequence[GgmlType] = KINDS
            ) -> tuple[dict[str, float], dict[str, str]]:
    """The least of the counted shapes for each key, and a line for each shape."""
    with ExitStack() as stack:
        bench = Bench(driver, compiler, rounds, stack)
        for kind in kinds:
            for shape in SHAPES:
                bench.run(kind, shape)
        for kind in OTHERS:
            bench.run(kind, (14336, 4096))
        bench.plain["bits that differ from the CPU's"] = "; ".join(bench.wrong) or "none"
        return {key: min(values) for key, values in bench.ratios.items()}, bench.plain
