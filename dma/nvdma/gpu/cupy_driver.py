"""How do those calls reach CUDA? Through cupy, which knows the driver and the runtime of the card that is there."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import cupy
import numpy as np
from cupy.cuda import driver, runtime

from nvdma.errors import GpuFailed, GpuOutOfMemory, GpuUnavailable
from nvdma.gpu.driver import Ask, Blocks, Card

# What the kernels need (PTX of sm_80: asynchronous copies, products of bytes in one instruction).
OLDEST = 80
# The driver's own library, which cupy has loaded by the time that anything works.
LIBRARY = "libcuda.so.1"
# driver_types.h: cudaError_t, whose numbers are cuda.h's, and flags.
SUCCESS, OUT_OF_MEMORY, NOT_READY = 0, 2, 600
NON_BLOCKING = 1
MAPPED = 2  # cudaHostRegisterMapped
READS_REGISTERED = 91  # cudaDevAttrCanUseHostPointerForRegisteredMem
# Events tell when, not how long: such are cheaper.
WITHOUT_TIMES = 2
DYNAMIC_BLOCK_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
THREAD_LOCAL = 1  # only this thread's calls are captured, and kept from what a capture forbids


def _translated(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose errors are ours."""

    @wraps(call)
    def translated(self: CupyDriver, *arguments: Any) -> Any:
        try:
            if not self._entered.done:
                self.enter()
            return call(self, *arguments)
        except runtime.CUDARuntimeError as error:
            kind = GpuOutOfMemory if error.status == OUT_OF_MEMORY else GpuFailed
            raise kind(f"{self.name}: {call.__name__}: {error}") from error
        except driver.CUDADriverError as error:
            raise GpuFailed(f"{self.name}: {call.__name__}: {error}") from error

    return translated


class _Entered(threading.local):
    """True of a thread that has made the card its own."""

    done = False


class CupyDriver:
    """Card `number`. `open` makes the context; the process's end takes it away.

    It waits by `ask`: cupy's own questions keep the interpreter to themselves, and what it has to wait with has no
    deadline.
    """

    def __init__(self, number: int, ask: Ask) -> None:
        self.number = number
        self.name = f"GPU {number}"
        self._ask = ask
        self._query = 0
        self._entered = _Entered()

    def enter(self) -> None:
        """Makes the card this thread's, which CUDA keeps by thread."""
        runtime.setDevice(self.number)
        self._entered.done = True

    def open(self) -> None:
        """Raises GpuUnavailable where there is no such card, or one that is too old."""
        try:
            count = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            raise GpuUnavailable(f"CUDA finds no card: {error}") from error
        if self.number >= count:
            raise GpuUnavailable(f"there is no GPU {self.number}: CUDA finds {count}")
        try:
            self.enter()
            runtime.free(0)  # the runtime makes the context with the first call that needs one
        except (runtime.CUDARuntimeError, driver.CUDADriverError) as error:
            raise GpuUnavailable(f"GPU {self.number} cannot be used: {error}") from error
        self._query = ctypes.cast(ctypes.CDLL(LIBRARY).cuEventQuery, ctypes.c_void_p).value or 0
        card = self.card()
        if card.capability < OLDEST:
            raise GpuUnavailable(f"{card.name} has compute capability {card.capability / 10}, kernels need "
                                 f"{OLDEST / 10}: cards of 2020 and later")

    @_translated
    def card(self) -> Card:
        """The card's facts."""
        facts = runtime.getDeviceProperties(self.number)
        free, total = runtime.memGetInfo()
        pci = f"{facts['pciDomainID']:04x}:{facts['pciBusID']:02x}:{facts['pciDeviceID']:02x}.0"
        return Card(facts["name"].decode(), facts["major"] * 10 + facts["minor"], total, free,
                    facts["multiProcessorCount"], facts["sharedMemPerBlockOptin"], pci,
                    f"CUDA {runtime.driverGetVersion() // 1000}.{runtime.driverGetVersion() % 1000 // 10}, "
                    f"cupy {cupy.__version__}", bool(runtime.deviceGetAttribute(READS_REGISTERED, self.number)))

    @_translated
    def allocate(self, nbytes: int) -> int:
        """VRAM."""
        return int(runtime.malloc(nbytes))

    @_translated
    def free(self, address: int) -> None:
        """Gives VRAM back."""
        runtime.free(address)

    @_translated
    def register(self, address: int, nbytes: int) -> None:
        """Pins host memory."""
        runtime.hostRegister(address, nbytes, MAPPED)

    @_translated
    def unregister(self, address: int) -> None:
        """Lets it go."""
        runtime.hostUnregister(address)

    @_translated
    def stream(self) -> int:
        """A new stream."""
        return int(runtime.streamCreateWithFlags(NON_BLOCKING))

    @_translated
    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copies, wherever both lie: addresses of the host and of the card are of one space."""
        runtime.memcpyAsync(to, source, nbytes, runtime.memcpyDefault, stream)

    @_translated
    def fill(self, to: int, byte: int, nbytes: int, stream: int) -> None:
        """Writes the same byte everywhere."""
        runtime.memsetAsync(to, byte, nbytes, stream)

    @_translated
    def event(self) -> int:
        """A new event."""
        return int(runtime.eventCreateWithFlags(WITHOUT_TIMES))

    @_translated
    def record(self, event: int, stream: int) -> None:
        """Puts the event into the stream."""
        runtime.eventRecord(event, stream)

    @_translated
    def happened(self, event: int) -> bool:
        """Asks for it."""
        status = int(runtime.eventQuery(event))
        if status not in (SUCCESS, NOT_READY):
            raise runtime.CUDARuntimeError(status)
        return status == SUCCESS

    @_translated
    def wait(self, event: int, seconds: float, eager: float) -> bool:
        """Asks for it until it has happened."""
        status = self._ask(self._query, event, NOT_READY, seconds, eager)
        if status not in (SUCCESS, NOT_READY):
            raise driver.CUDADriverError(status)
        return status == SUCCESS

    @_translated
    def await_event(self, stream: int, event: int) -> None:
        """Lets the stream wait."""
        runtime.streamWaitEvent(stream, event)

    @_translated
    def load(self, image: bytes) -> int:
        """A module."""
        return int(driver.moduleLoadData(image))

    @_translated
    def function(self, module: int, name: str, block_memory: int) -> int:
        """A kernel."""
        found = int(driver.moduleGetFunction(module, name))
        if block_memory:
            driver.funcSetAttribute(found, DYNAMIC_BLOCK_MEMORY, block_memory)
        return found

    @_translated
    def launch(self, function: int, blocks: Blocks, threads: int, block_memory: int, arguments: bytes,
               stream: int) -> None:
        """Begins a kernel; the driver has copied its parameter when the call returns."""
        parameter = np.frombuffer(arguments, np.uint8)
        parameters = np.array([parameter.ctypes.data], np.uint64)
        driver.launchKernel(function, *blocks, threads, 1, 1, block_memory, stream, parameters.ctypes.data, 0)

    @_translated
    def begin_capture(self, stream: int) -> None:
        """Notes what comes."""
        runtime.streamBeginCapture(stream, THREAD_LOCAL)

    @_translated
    def end_capture(self, stream: int) -> int:
        """The graph, made ready to run."""
        noted = runtime.streamEndCapture(stream)
        graph = int(runtime.graphInstantiate(noted))
        runtime.graphDestroy(noted)
        return graph

    @_translated
    def run_graph(self, graph: int, stream: int) -> None:
        """Begins a graph."""
        runtime.graphLaunch(graph, stream)

    @_translated
    def drop_graph(self, graph: int) -> None:
        """Forgets a graph."""
        runtime.graphExecDestroy(graph)
