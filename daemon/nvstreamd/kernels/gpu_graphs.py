"""Which work of a pass does a card begin in one call? What it has begun before in a pass of the same shape: a graph.

A part of a pass is the same work whenever the pass has the same shape and its weights lie where they lay. Where nobody
has to wait in between, parts are chained: then a whole pass is one graph, and the card has nothing to wait for either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvdma.fence import DONE, Fence
from nvdma.gpu.driver import Driver
from nvstreamd.kernels.gpu_launch import Launch
from nvstreamd.kernels.gpu_pass import Shape
from nvstreamd.kernels.gpu_room import Room

# Graphs of wider passes would not be used twice: prompts come in chunks of any length.
WIDEST_GRAPH = 64
# Launches that all graphs together may hold.
MOST_LAUNCHES = 1 << 16


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a pass: `what` tells it from others, `make` gives its launches for the shape of the pass."""

    what: tuple[object, ...]
    make: Callable[[], list[Launch]]


@dataclass(frozen=True, slots=True)
class _Graph:
    """The driver's graph, and how many launches it holds."""

    handle: int
    launches: int


class Graphs:
    """The graphs of a stream's work, the last used ones of them. `drop` forgets all."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self.driver = driver
        self.stream = stream
        self._graphs: OrderedDict[object, _Graph] = OrderedDict()
        self._launches = 0
        self._generation = 0

    def begin(self, parts: Sequence[Part], room: Room) -> None:
        """Begins parts, one behind the other: as a graph, where passes are narrow. Raises GpuOutOfMemory, KernelError.
        """
        what, shape = tuple(part.what for part in parts), self._fresh(room)
        graph = self._graphs.get((what, shape))
        if graph is None:
            launches = _made(parts)
            # Launches ask for buffers: what grew has made those of before worthless.
            if room.shape != shape:
                launches, shape = _made(parts), self._fresh(room)
            if room.over.rows > WIDEST_GRAPH:
                for launch in launches:
                    launch.begin(self.driver, self.stream)
                return
            graph = self._graphs[what, shape] = self._noted(launches)
            self._launches += graph.launches
            while self._launches > MOST_LAUNCHES and len(self._graphs) > 1:
                self._forget_one()
        self._graphs.move_to_end((what, shape))
        self.driver.run_graph(graph.handle, self.stream)

    def _fresh(self, room: Room) -> Shape:
        """The shape of the pass. Graphs that hold addresses of before are dropped."""
        shape = room.shape
        if shape.generation != self._generation:
            self.drop()
            self._generation = shape.generation
        return shape

    def _noted(self, launches: Sequence[Launch]) -> _Graph:
        self.driver.begin_capture(self.stream)
        try:
            for launch in launches:
                launch.begin(self.driver, self.stream)
        except BaseException:
            self.driver.drop_graph(self.driver.end_capture(self.stream))
            raise
        return _Graph(self.driver.end_capture(self.stream), len(launches))

    def _forget_one(self) -> None:
        _, graph = self._graphs.popitem(last=False)
        self._launches -= graph.launches
        self.driver.drop_graph(graph.handle)

    def drop(self) -> None:
        """Forgets all graphs."""
        while self._graphs:
            self._forget_one()


def _made(parts: Sequence[Part]) -> list[Launch]:
    return [launch for part in parts for launch in part.make()]


class Chain:
    """Parts of a pass that are begun when somebody wants to know of their end: the fence of all of them.

    `begin` begins them, and gives the fence behind them. Only the thread that runs passes may ask.
    """

    def __init__(self, begin: Callable[[Sequence[Part]], Fence]) -> None:
        self._begin = begin
        self._parts: list[Part] = []
        self._fence: Fence | None = None

    def __str__(self) -> str:
        return "a pass"

    @property
    def begun(self) -> bool:
        """True from when nothing can be added any more."""
        return self._fence is not None

    def add(self, part: Part) -> None:
        """Comes behind those that are there."""
        assert not self.begun
        self._parts.append(part)

    def go(self) -> Fence:
        """Begins the parts, once. Raises GpuOutOfMemory, KernelError."""
        if self._fence is None:
            # Whatever comes of it, it is not tried again.
            self._fence = DONE
            self._fence = self._begin(self._parts)
            self._parts = []
        return self._fence

    def done(self) -> bool:
        """True once all of them have ended."""
        return self.go().done()

    def wait(self, seconds: float) -> bool:
        """Waits that long at most for all of them."""
        return self.go().wait(seconds)
