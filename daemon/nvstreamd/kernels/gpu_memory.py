"""How do weights come into a card's memory, and into which part of it? VRAM under a ceiling, and the link."""

from __future__ import annotations

from contextlib import ExitStack

from nvdma.fence import Fence
from nvdma.gpu.driver import Driver
from nvdma.gpu.vram import Vram
from nvdma.memory import Span
from nvstreamd.errors import KernelError
from nvstreamd.kernels.device import Tensors
from nvstreamd.kernels.gpu_bring import Bringer
from nvstreamd.kernels.gpu_form import Form
from nvstreamd.kernels.gpu_launch import Functions

# What a card is left for activations, graphs, the driver, and others: a part of what is free, and so much at least.
KEPT_PART, KEPT_BYTES = 16, 512 << 20


class GpuMemory:
    """A card's memory for weights: `ceiling` bytes at most, 0 for what is free but a part of it. `open` takes it."""

    def __init__(self, driver: Driver, functions: Functions, ceiling: int) -> None:
        card = driver.card()
        kept = max(KEPT_BYTES, card.free // KEPT_PART)
        self.ceiling = min(ceiling or card.free, max(0, card.free - kept))
        self.driver = driver
        self._bringer = Bringer(driver, functions)
        self._vram: Vram | None = None

    def open(self, nbytes: int, stack: ExitStack) -> None:
        """Takes so much of it. Raises GpuOutOfMemory."""
        vram = Vram(self.driver, nbytes)
        vram.open(stack)
        self._vram = vram

    def pin(self, address: int, nbytes: int, stack: ExitStack) -> None:
        """Lets the card reach host memory by itself."""
        self.driver.register(address, nbytes)
        stack.callback(self.driver.unregister, address)

    def form(self, tensors: Tensors) -> Form:
        """The form of weights that lie so in a segment."""
        return Form.of(tensors)

    def take(self, nbytes: int) -> Span:
        """A part of VRAM."""
        if self._vram is None:
            raise KernelError("a card's memory is not open", "report this")
        return self._vram.take(nbytes)

    def give_back(self, span: Span) -> None:
        """Takes back the part that was taken last."""
        if self._vram is not None:
            self._vram.give_back(span)

    def bring(self, tensors: Tensors, raw: Span, to: Span) -> Fence:
        """Begins to bring weights. Raises KernelError where they do not fit."""
        form = Form.of(tensors)
        if form.nbytes > to.nbytes:
            raise KernelError(f"tensors of {form.nbytes} bytes for {to.nbytes} of VRAM", "report this")
        return self._bringer.bring(form, raw, to.address)

    def close(self) -> None:
        """Gives back what bringing took."""
        self._bringer.close()
