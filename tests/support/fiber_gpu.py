"""How is a card's code run where there is no card? Its kernels as fibers, its driver as queues that nobody hurries.

Every call of the driver is put off until somebody waits for an event behind it: what the host changes too early is
seen. Memory begins as NaN. Whoever touches what is behind the end of an allocation, or given back, ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import runpy
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nvdma.errors import GpuFailed, GpuOutOfMemory
from nvdma.gpu.driver import Blocks, Card
from nvstreamd.errors import KernelError
from nvstreamd.kernels.gpu_units import Unit, digest, sources

FIBERS = Path(__file__).parent / "fibers"
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS, BUILT = ROOT / "scripts", ROOT / "build" / "fibers"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-subobject-linkage",
         "-Werror")
LAUNCH_REFUSED, WAITS_FOR_EVER = 1, 2
ALIGNMENT = 256  # CUDA's, of allocations
BLOCK_MEMORY = 48 << 10  # what a block has where nothing was said
NOBODY = 0  # PROT_NONE
PAUSE_SECONDS = 1e-3  # between two looks at streams that stand still
LIBC = ctypes.CDLL(None, use_errno=True)


class FiberCompiler:
    """Compiles kernels with the machine's C++ compiler; what was compiled is kept in build/fibers."""

    def compile(self, unit: Unit) -> bytes:
        """The path of a library, which is what FiberDriver loads."""
        compiler = runpy.run_path(str(SCRIPTS / "build_kernels.py"))["compiler"]

        cxx = compiler()
        if cxx is None:
            raise KernelError("there is no C++ compiler", "apt-get install g++")
        words = "".join(path.read_text() for path in sorted(FIBERS.iterdir()) if path.is_file())
        fast = ("-mfma",) if "fma" in Path("/proc/cpuinfo").read_text() else ()
        name = f"{unit.name}-{digest(unit, words, cxx, *FLAGS, *fast)[:16]}"
        library = BUILT / f"{name}.so"
        if not library.exists():
            BUILT.mkdir(parents=True, exist_ok=True)
            # Several processes run tests: each has a folder of its own, and the last one's library is as good.
            with tempfile.TemporaryDirectory(dir=BUILT) as own:
                folder = Path(own)
                for each, text in sources().items():
                    (folder / each).write_text(text)
                partial = folder / library.name
                subprocess.run([cxx, *FLAGS, *fast, *(f"-D{key}={value}" for key, value in unit.defines), f"-I{folder}",
                                f"-I{FIBERS}", "-x", "c++", str(folder / unit.source), "-o", str(partial)], check=True)
                partial.replace(library)
        return str(library).encode()


class _Launch(ctypes.Structure):
    _fields_ = (("blocks", ctypes.c_int32 * 3), ("threads", ctypes.c_int32), ("memory", ctypes.c_int64))


class _Fenced:
    """`nbytes` of 0xFF, whose end is the end of what may be touched. After `close` none of it may."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._inside = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, self._inside + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._begin = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._forbid(self._inside, mmap.PAGESIZE)
        ctypes.memset(self._begin, 0xFF, self._inside)
        self.address = self._begin + (self._inside - nbytes) // ALIGNMENT * ALIGNMENT
        self._behind = self._begin + self._inside - self.address - nbytes

    def close(self) -> None:
        """Keeps the addresses, gives the memory back. Raises GpuFailed where somebody wrote behind the end."""
        behind = ctypes.string_at(self.address + self.nbytes, self._behind)
        self._forbid(0, self._inside)
        if behind.strip(b"\xff"):
            raise GpuFailed(f"written behind the end of {self.nbytes} bytes")

    def _forbid(self, begin: int, nbytes: int) -> None:
        self._map.madvise(mmap.MADV_DONTNEED, begin, nbytes)
        if LIBC.mprotect(ctypes.c_void_p(self._begin + begin), ctypes.c_size_t(nbytes), NOBODY):
            raise OSError(ctypes.get_errno(), "mprotect")


@dataclass(slots=True)
class _Event:
    """How often it was recorded, and how often that came to pass."""

    recorded: int = 0
    happened: int = 0


@dataclass(slots=True)
class _Stream:
    work: deque[Callable[[], bool]] = field(default_factory=deque)


class FiberDriver:
    """A card of `memory` bytes, in the memory of this process, whose kernels may read the host's."""

    def __init__(self, memory: int = 1 << 30, *, reads_host: bool = True) -> None:
        self.memory = memory
        self.reads_host = reads_host
        self.registered: dict[int, int] = {}
        self.launches = 0
        # One thread computes while another brings weights; blocks of fibers run one at a time.
        self._lock = threading.RLock()
        self.graphs_made = 0
        self.graphs_run = 0
        self.held: set[int] = set()  # streams that stand still
        self._taken: dict[int, _Fenced] = {}
        self._gone: list[_Fenced] = []  # addresses that nobody gets again
        self._streams: list[_Stream] = []
        self._events: list[_Event] = []
        self._libraries: list[ctypes.CDLL] = []
        self._functions: list[tuple[str, Callable[..., int], int]] = []
        self._graphs: dict[int, list[Callable[[], bool]]] = {}
        self._capturing: dict[int, list[Callable[[], bool]]] = {}

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return sum(each.nbytes for each in self._taken.values())

    @property
    def graphs(self) -> int:
        """Graphs that were made and not dropped."""
        return len(self._graphs)

    def card(self) -> Card:
        """A card of the newest kind."""
        return Card("fibers", 90, self.memory, self.memory - self.used, 4, 227 << 10, "0000:00:00.0", "a processor",
                    self.reads_host)

    def allocate(self, nbytes: int) -> int:
        """NaN, wherever somebody looks at it as a float."""
        if nbytes > self.memory - self.used:
            raise GpuOutOfMemory(f"{nbytes} bytes, {self.memory - self.used} are free")
        memory = _Fenced(nbytes)
        self._taken[memory.address] = memory
        return memory.address

    def free(self, address: int) -> None:
        """All work comes before."""
        self.run_all()
        self._gone.append(self._taken.pop(address))
        self._gone[-1].close()

    def register(self, address: int, nbytes: int) -> None:
        """Notes it."""
        self.registered[address] = nbytes

    def unregister(self, address: int) -> None:
        """Forgets it."""
        self.run_all()
        del self.registered[address]

    def stream(self) -> int:
        """A new queue."""
        self._streams.append(_Stream())
        return len(self._streams) - 1

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Bytes move when they must."""
        self._put(stream, lambda: ctypes.memmove(to, source, nbytes) is not None)

    def fill(self, to: int, byte: int, nbytes: int, stream: int) -> None:
        """Likewise."""
        self._put(stream, lambda: ctypes.memset(to, byte, nbytes) is not None)

    def event(self) -> int:
        """A new event."""
        self._events.append(_Event())
        return len(self._events) - 1

    def record(self, event: int, stream: int) -> None:
        """It happens when the stream's work has come so far."""
        with self._lock:
            found = self._events[event]
            found.recorded += 1

        def happen() -> bool:
            found.happened += 1
            return True

        self._put(stream, happen)

    def happened(self, event: int) -> bool:
        """Whoever asks is who makes it happen."""
        with self._lock:
            found = self._events[event]
            if found.happened < found.recorded:
                self.run_all()
            return found.happened == found.recorded

    def wait(self, event: int, seconds: float, eager: float) -> bool:
        """What is asked for has happened, or stands still for as long as others leave it so."""
        until = time.monotonic() + seconds
        while not self.happened(event):
            if time.monotonic() > until:
                return False
            threading.Event().wait(PAUSE_SECONDS)
        return True

    def await_event(self, stream: int, event: int) -> None:
        """The stream goes no further until then."""
        found, wanted = self._events[event], self._events[event].recorded
        self._put(stream, lambda: found.happened >= wanted)

    def load(self, image: bytes) -> int:
        """A library."""
        self._libraries.append(ctypes.CDLL(image.decode()))
        return len(self._libraries) - 1

    def function(self, module: int, name: str, block_memory: int) -> int:
        """A kernel of it."""
        assert block_memory <= self.card().block_memory
        self._functions.append((name, getattr(self._libraries[module], name), block_memory or BLOCK_MEMORY))
        return len(self._functions) - 1

    def launch(self, function: int, blocks: Blocks, threads: int, block_memory: int, arguments: bytes,
               stream: int) -> None:
        """A kernel, when it must. Raises GpuFailed where a real driver would."""
        name, entry, most_memory = self._functions[function]
        if min(blocks) < 1 or blocks[1] > 65535 or blocks[2] > 65535 or not 0 < threads <= 1024:
            raise GpuFailed(f"{name}: invalid configuration: {blocks}, {threads}")
        if block_memory > most_memory:
            raise GpuFailed(f"{name}: {block_memory} bytes of the block's memory, {most_memory} were said")
        launch = _Launch((ctypes.c_int32 * 3)(*blocks), threads, block_memory)

        def run() -> bool:
            self.launches += 1
            found = entry(ctypes.byref(launch), arguments)
            if found:
                raise GpuFailed(f"{name}: {'waits for ever' if found == WAITS_FOR_EVER else 'too many threads'}")
            return True

        self._put(stream, run)

    def begin_capture(self, stream: int) -> None:
        """From here on work is noted."""
        self._capturing[stream] = []

    def end_capture(self, stream: int) -> int:
        """What was noted."""
        self.graphs_made += 1
        self._graphs[self.graphs_made] = self._capturing.pop(stream)
        return self.graphs_made

    def run_graph(self, graph: int, stream: int) -> None:
        """All that was noted."""
        self.graphs_run += 1
        for work in self._graphs[graph]:
            self._put(stream, work)

    def drop_graph(self, graph: int) -> None:
        """Its number is not used again."""
        del self._graphs[graph]

    def run_all(self) -> None:
        """Runs what is in the queues, each stream as far as it may. Raises GpuFailed where they wait for each other."""
        with self._lock:
            while any(stream.work for stream in self._streams):
                went = False
                for number, stream in reversed(list(enumerate(self._streams))):
                    while number not in self.held and stream.work and stream.work[0]():
                        stream.work.popleft()
                        went = True
                if not went and self.held:
                    return
                if not went:
                    raise GpuFailed("streams wait for each other")

    def _put(self, stream: int, work: Callable[[], bool]) -> None:
        with self._lock:
            if stream in self._capturing:
                self._capturing[stream].append(work)
            else:
                self._streams[stream].work.append(work)
