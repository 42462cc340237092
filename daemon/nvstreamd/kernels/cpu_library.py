"""Is there a library of C++ kernels, and which of its instruction sets does this machine have?"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.errors import KernelError
from nvstreamd.kernels.cpu_structs import ABI, CpuPass, CpuStep, CpuVisit

LIBRARY = Path(__file__).parent / "_cpu.so"

@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One set of kernels in the library, by its place there; the library lists the best first."""

    number: int
    name: str
    usable: bool


@dataclass(frozen=True, slots=True)
class CpuSteps:
    """`count` struct CpuSteps at `address`, which `block` keeps alive."""

    address: int
    count: int
    block: object


class CpuLibrary:
    """The functions of cpu/library.cpp. `open` makes the context that owns the threads."""

    def __init__(self, path: Path = LIBRARY) -> None:
        self._dll = ctypes.CDLL(str(path))
        found = self._dll.nv_abi() if hasattr(self._dll, "nv_abi") else "none"
        if found != ABI:
            raise KernelError(f"{path}: built for version {found} of the kernels' interface, expected {ABI}",
                              "build the package again: scripts/build_kernels.py")
        self._declare()

    def _declare(self) -> None:
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        dll = self._dll
        dll.nv_kernel_name.restype = ctypes.c_char_p
        dll.nv_open.restype = pointer
        dll.nv_close.argtypes = [pointer]
        dll.nv_check.argtypes = [pointer, whole]
        dll.nv_run.argtypes = [pointer, pointer, whole, whole, pointer, pointer]
        dll.nv_experts.argtypes = [pointer, pointer, whole, pointer]
        dll.nv_check.restype = dll.nv_run.restype = dll.nv_experts.restype = ctypes.c_char_p
        dll.nv_angles.argtypes = [pointer, whole, ctypes.c_double, pointer, whole, pointer, pointer]
        dll.nv_angles.restype = None
        dll.nv_read.argtypes = [pointer, pointer, whole]
        dll.nv_read.restype = ctypes.c_float
        dll.nv_ask.argtypes = [pointer, pointer, ctypes.c_int32, ctypes.c_double, ctypes.c_double]
        dll.nv_ask.restype = ctypes.c_int32

    def instruction_sets(self) -> list[InstructionSet]:
        """All that were built, the best first."""
        dll = self._dll
        return [InstructionSet(number, dll.nv_kernel_name(number).decode(), bool(dll.nv_kernel_usable(number)))
                for number in range(dll.nv_kernel_count())]

    def ask(self, function: int, of: int, pending: int, seconds: float, eager: float) -> int:
        """Calls a C function until it does not return `pending`, as nvdma.gpu.driver's Ask says; its last answer."""
        return int(self._dll.nv_ask(function, of, pending, seconds, eager))

    def best(self) -> InstructionSet:
        """The best that this machine has; the portable one always works."""
        return next(found for found in self.instruction_sets() if found.usable)


class CpuContext:
    """Kernels of one instruction set and `threads` threads, the caller being one of them."""

    def __init__(self, library: CpuLibrary, kernel: InstructionSet, threads: int) -> None:
        self.kernel = kernel
        self.threads = max(1, threads)
        self._dll = library._dll
        self._handle = 0

    def open(self, stack: ExitStack) -> None:
        """Starts the threads; `stack` stops them."""
        self._handle = self._dll.nv_open(self.kernel.number, self.threads)
        if not self._handle:
            raise KernelError(f"the kernels for {self.kernel.name} could not start {self.threads} threads",
                              "give the engine fewer threads or more memory")
        stack.callback(self._close)

    def _close(self) -> None:
        handle, self._handle = self._handle, 0
        self._dll.nv_close(handle)

    def check(self, steps: Sequence[CpuStep]) -> CpuSteps:
        """The steps of a stage, ready to be run. Raises KernelError for what no kernel could do."""
        block = (CpuStep * len(steps))(*steps)
        self._check(self._dll.nv_check(block, len(steps)))
        return CpuSteps(ctypes.addressof(block), len(steps), block)

    def run(self, steps: CpuSteps, number: int, weights: int, over: CpuPass) -> None:
        """Runs the steps of stage `number`, one after the other, over a pass; `weights` is an address."""
        self._check(self._dll.nv_run(self._handle, steps.address, steps.count, number, weights, ctypes.addressof(over)))

    def experts(self, visits: Sequence[CpuVisit], over: CpuPass) -> None:
        """Runs the experts of a layer, at least one, over rows of a pass."""
        block = (CpuVisit * len(visits))(*visits)
        self._check(self._dll.nv_experts(self._handle, block, len(visits), ctypes.addressof(over)))

    def angles(self, frequencies: int, pairs: int, magnitude: float, positions: int, rows: int, cos: int, sin: int
               ) -> None:
        """cos and sin [rows, pairs] float32 at their addresses, of positions times frequencies, times `magnitude`."""
        self._dll.nv_angles(frequencies, pairs, magnitude, positions, rows, cos, sin)

    def read(self, data: int, nbytes: int) -> None:
        """Reads memory with all threads, as fast as it comes: what a product can reach at most."""
        self._dll.nv_read(self._handle, data, nbytes)

    def _check(self, wrong: bytes | None) -> None:
        if wrong is not None:
            raise KernelError(f"a kernel for {self.kernel.name} refused its call: {wrong.decode()}", "report this")
