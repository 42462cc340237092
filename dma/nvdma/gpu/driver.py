"""Which calls of a GPU's driver are used at all? One table, so that all that depends on a maker's library has one home.

Addresses, streams, events, functions and graphs are integers, as the driver's own handles are. Verbs do not block but
where they say so. Every call may raise GpuFailed, which for most causes leaves the whole context of no use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# A kernel's blocks are x by y by z.
Blocks = tuple[int, int, int]
# Calls a C function of one pointer, both by address, as long as it returns `pending`, `seconds` at most: its last
# answer. It asks without pause for `eager` seconds, and keeps no other thread of the interpreter from running.
Ask = Callable[[int, int, int, float, float], int]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU's facts. `capability` is CUDA's compute capability, 90 for 9.0; memory is in bytes."""

    name: str
    capability: int
    memory: int
    free: int
    multiprocessors: int
    # The most that a block of threads may have of a multiprocessor's memory.
    block_memory: int
    pci: str
    driver: str
    # Kernels may read registered host memory, at the addresses that the processor has for it.
    reads_host: bool


class Driver(Protocol):
    """A card, and the one context that is used on it."""

    def card(self) -> Card:
        """The card's facts, `free` as it is now."""

    def allocate(self, nbytes: int) -> int:
        """VRAM from the address that comes back on. Raises GpuOutOfMemory."""

    def free(self, address: int) -> None:
        """Gives VRAM back. Blocks until the card has done all that was begun."""

    def register(self, address: int, nbytes: int) -> None:
        """Pins host memory that lies there, and lets the card read and write it. Blocks, about 0.03 s a GiB."""

    def unregister(self, address: int) -> None:
        """Undoes `register`."""

    def stream(self) -> int:
        """A new queue of work, whose parts run in order."""

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copies between VRAM and registered host memory, or within VRAM."""

    def fill(self, to: int, byte: int, nbytes: int, stream: int) -> None:
        """Writes the same byte everywhere."""

    def event(self) -> int:
        """A new event."""

    def record(self, event: int, stream: int) -> None:
        """The event has happened once all that was put into the stream before has ended."""

    def happened(self, event: int) -> bool:
        """True once it has. An event that was never recorded has."""

    def wait(self, event: int, seconds: float, eager: float) -> bool:
        """Blocks until it has, so long at most; True then. Other threads run meanwhile.

        For `eager` seconds it asks without pause: less is lost, and a processor is busy.
        """

    def await_event(self, stream: int, event: int) -> None:
        """What comes into the stream from here on begins once the event has happened."""

    def load(self, image: bytes) -> int:
        """A module of machine code for this card."""

    def function(self, module: int, name: str, block_memory: int) -> int:
        """A kernel of a module, which may be launched with so much memory of the block's."""

    def launch(self, function: int, blocks: Blocks, threads: int, block_memory: int, arguments: bytes,
               stream: int) -> None:
        """Begins a kernel, whose one parameter has these bytes."""

    def begin_capture(self, stream: int) -> None:
        """From here on, work that is put into the stream is only noted."""

    def end_capture(self, stream: int) -> int:
        """The noted work as a graph that can be run as a whole."""

    def run_graph(self, graph: int, stream: int) -> None:
        """Begins all of a graph's work."""

    def drop_graph(self, graph: int) -> None:
        """Forgets a graph."""
