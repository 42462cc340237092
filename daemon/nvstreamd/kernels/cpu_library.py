"""Is there a library of C++ kernels, and which of its instruction sets does this machine have?"""

from __future__ import annotations

import ctypes
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.errors import KernelError

LIBRARY = Path(__file__).parent / "_cpu.so"
ABI = 2

# struct Linear and its three struct Matrix, struct Attend, struct Step, struct Pass, struct Span: cpu/shapes.h.
_LINEAR, _ATTEND = "QQqqfiq" + "QqqQqQ" * 3, "12Q4qfi"
LINEAR = struct.Struct(f"<{_LINEAR}")
STEP = struct.Struct(f"<q{_LINEAR}{_ATTEND}")
PASS = struct.Struct("<2q4Q")
SPAN = struct.Struct("<4q")
NO_LINEAR, NO_ATTEND = (0,) * 25, (0,) * 18
STORE, ADD, GATED = range(3)


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One set of kernels in the library, by its place there; the library lists the best first."""

    number: int
    name: str
    usable: bool


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
        pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        dll = self._dll
        dll.nv_kernel_name.restype = ctypes.c_char_p
        dll.nv_open.restype = pointer
        dll.nv_close.argtypes = [pointer]
        dll.nv_linear.argtypes = [pointer, pointer]
        dll.nv_run.argtypes = [pointer, pointer, whole, pointer]
        dll.nv_linear.restype = dll.nv_run.restype = ctypes.c_char_p
        dll.nv_norm.argtypes = [pointer, pointer, pointer, whole, whole, real, pointer]
        dll.nv_norm.restype = None
        dll.nv_finite.argtypes = [pointer, whole]
        dll.nv_read.argtypes = [pointer, pointer, whole]
        dll.nv_read.restype = real

    def instruction_sets(self) -> list[InstructionSet]:
        """All that were built, the best first."""
        dll = self._dll
        return [InstructionSet(number, dll.nv_kernel_name(number).decode(), bool(dll.nv_kernel_usable(number)))
                for number in range(dll.nv_kernel_count())]

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
        self._linear = ctypes.create_string_buffer(LINEAR.size)

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

    def linear(self, *fields: float) -> None:
        """Runs a struct Linear given field by field."""
        LINEAR.pack_into(self._linear, 0, *fields)
        self._check(self._dll.nv_linear(self._handle, self._linear))

    def run(self, steps: bytes, over: bytes) -> None:
        """Runs struct Steps, one after the other, over the rows of a struct Pass."""
        self._check(self._dll.nv_run(self._handle, steps, len(steps) // STEP.size, over))

    def norm(self, x: int, weight: int, rows: int, columns: int, epsilon: float, y: int) -> None:
        """RMSNorm of rows x columns float32 at address x."""
        self._dll.nv_norm(self._handle, x, weight, rows, columns, epsilon, y)

    def finite(self, x: int, count: int) -> bool:
        """Whether `count` float32 at address x are neither NaN nor infinite."""
        return bool(self._dll.nv_finite(x, count))

    def read(self, data: int, nbytes: int) -> None:
        """Reads memory with all threads, as fast as it comes: what a product can reach at most."""
        self._dll.nv_read(self._handle, data, nbytes)

    def _check(self, wrong: bytes | None) -> None:
        if wrong is not None:
            raise KernelError(f"a kernel for {self.kernel.name} refused its call: {wrong.decode()}", "report this")
