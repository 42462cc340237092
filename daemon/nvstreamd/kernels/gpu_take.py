"""How do a pass's own bytes come to a card? A kernel takes them out of host memory that the card reaches.

A copy would wait for the engine that copies weights to be done with all that was put into its queue before: for layers
of a large model, tens of milliseconds.
"""

from __future__ import annotations

from nvdma.gpu.driver import Driver
from nvstreamd.kernels.gpu_form import up
from nvstreamd.kernels.gpu_launch import ROW_THREADS, Functions, Launch
from nvstreamd.kernels.gpu_structs import GpuRows

WORD = 4
# Blocks of threads that read host memory: as many as keep the link busy.
MOST_BLOCKS = 64


class Taker:
    """Puts work into a stream. Where a card's kernels cannot read host memory, it copies."""

    def __init__(self, driver: Driver, functions: Functions, stream: int) -> None:
        self.driver = driver
        self.functions = functions
        self.stream = stream
        self.by_kernel = driver.card().reads_host

    def take(self, to: int, source: int, nbytes: int) -> None:
        """Begins to bring so many bytes, a multiple of 4, from a host address to one of VRAM. Raises GpuFailed."""
        if not self.by_kernel:
            self.driver.copy(to, source, nbytes, self.stream)
            return
        assert nbytes >= WORD and nbytes % WORD == 0
        words = nbytes // WORD
        call, blocks = GpuRows(x=source, out=to, columns=words), min(up(words, ROW_THREADS), MOST_BLOCKS)
        Launch(self.functions.of_rows("take_words"), (blocks, 1, 1), ROW_THREADS, 0, call).begin(
            self.driver, self.stream)
