"""What must something that multiplies offer the engine? The seam where processors plug in.

No array crosses it on the way of a pass: packed embedding rows go in, scores come out, and weights are memory that the
device can reach. Only `routing` and `scores` wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nvdma.fence import Fence
from nvdma.memory import Span
from nvstreamd.errors import KernelError
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints, Longs
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.rows import Rows
from nvstreamd.program import Attend, Model, Program, Value

# The id of what kernels/ARITHMETIC.md says. It changes with every change of that page that changes a bit.
ARITHMETIC = "nvstream-2"

WAIT_SECONDS = 60.0


class Tensor(Protocol):
    """Where a tensor lies among the weights of a stage: its type, its shape, and its first byte."""

    @property
    def type(self) -> GgmlType:
        """The format of its blocks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (columns,)."""

    @property
    def offset(self) -> int:
        """Bytes from the beginning of the stage's weights."""


Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Scores:
    """`values` [wanted rows, vocabulary] float32; `unsound` is the first stage that left NaN or infinity, by number."""

    values: Floats
    unsound: int | None


@dataclass(frozen=True, slots=True)
class Visit:
    """An expert that `prepare` made ready, where its weights lie, and what it serves: each row * used + rank there."""

    ready: Any
    weights: Span
    places: Longs


def scale_of(step: Attend) -> float:
    """What the queries of a step are multiplied by, a binary32 number (ARITHMETIC.md, section 5)."""
    if step.scale is not None:
        return float(np.float32(step.scale))
    return float(np.float32(1) / np.sqrt(np.float32(step.heads.dim)))


def hidden_of(model: Model, kind: GgmlType, embedded: bytes | bytearray) -> Floats:
    """The first hidden state [rows, columns]: packed embedding rows, times the model's scale where it has one."""
    found = dequantise(kind, np.frombuffer(embedded, np.uint8), model.hidden.columns)
    return found if model.embedding_scale == 1.0 else found * np.float32(model.embedding_scale)


def wait_for(fence: Fence) -> None:
    """Waits for a fence, on a device that computes while it is called. Raises KernelError after a minute."""
    if not fence.wait(WAIT_SECONDS):
        raise KernelError(f"waited {WAIT_SECONDS:.0f} s for {fence}", "look at the drive's and the card's log")


class Form(Protocol):
    """How a segment's weights lie in a device's own memory."""

    @property
    def nbytes(self) -> int:
        """Bytes that they take there."""


class OwnMemory(Protocol):
    """A device's own memory, where weights have to lie, in a form of the device's."""

    def pin(self, address: int, nbytes: int, stack: ExitStack) -> None:
        """Lets the device reach host memory by itself; `stack` undoes it. Raises DmaError."""

    def form(self, tensors: Tensors) -> Form:
        """The form of weights that lie so in a segment."""

    def take(self, nbytes: int) -> Span:
        """A part of what was set aside. Raises DmaError when there is not so much."""

    def give_back(self, span: Span) -> None:
        """Takes back the part that was taken last."""

    def open(self, nbytes: int, stack: ExitStack) -> None:
        """Sets so much of it aside for weights; `stack` gives it back. Raises DmaError."""

    def bring(self, tensors: Tensors, raw: Span, to: Span) -> Fence:
        """Begins to bring a segment's weights from host memory; `raw` must stay until the fence is done."""

    @property
    def ceiling(self) -> int:
        """Bytes that weights, keys and values may take."""


class HostProducts(Protocol):
    """What multiplies weights that lie in host memory, in passes of a device with memory of its own."""

    @property
    def name(self) -> str:
        """What status shows."""

    @property
    def seconds(self) -> float:
        """The seconds that it has multiplied so far, and what it waited for activations to come."""


class RestingWeights(Protocol):
    """What a device can do with weights that rest in its own memory: begin a pass at once, and experts unasked for."""

    def chain(self) -> None:
        """From here on all weights rest: the parts of a pass may be begun when somebody waits for one of them.

        Errors of `run` may come with `scores`.
        """

    def prepare_all(self, program: Program, tensors: Sequence[Tensors], weights: Sequence[Span]) -> Any:
        """All experts of a layer: how each lies in its segment, and where its weights are. Raises KernelError."""

    def run_all(self, experts: Any, after: Fence) -> Fence:
        """Runs them over the rows that the last Route of the pass sent to them, once `after` is done."""


class Device(Protocol):
    """Something that multiplies. A row's bits are kernels/ARITHMETIC.md's where `arithmetic` says so.

    `name` is what status shows; `arithmetic` is an id: passes and replays may move between devices whose ids are equal.
    """

    name: str
    arithmetic: str

    @property
    def own(self) -> OwnMemory | None:
        """The device's own memory; None where weights are multiplied where they lie in host memory."""

    @property
    def resting(self) -> RestingWeights | None:
        """What the device can do with weights that rest in its own memory; None where it has none."""

    @property
    def host(self) -> HostProducts | None:
        """What multiplies, for a device with memory of its own, weights that lie in host memory; None for nothing."""

    def open(self, model: Model, constants: Span, tensors: Tensors, pages: Sequence[int]) -> None:
        """Makes room for so many `pages` of each group; `tensors` in `constants` are there for every program.

        Raises NotEnoughMemory. A later call begins anew.
        """

    def prepare(self, program: Program, tensors: Tensors) -> Any:
        """The program for weights laid out as `tensors` say, wherever they will lie. Raises KernelError."""

    def begin(self, rows: Rows, kind: GgmlType, embedded: bytes | bytearray) -> None:
        """Begins a pass over `rows`; `embedded` holds their embedding rows, packed. Raises KernelError."""

    def run(self, ready: Any, weights: Span, number: int, after: Fence) -> Fence:
        """Runs what `prepare` gave, as stage `number` of the pass, once `after` is done.

        `weights` lie in the device's own memory, if it has any, or in the host's where something multiplies there.
        They must stay as they are until the fence that comes back is done. Raises KernelError.
        """

    def routing(self) -> Ints:
        """Waits for the last Route of the pass; the experts of each row by rank, [rows, used] int32."""

    def experts(self, visits: Sequence[Visit], after: Fence) -> Fence:
        """Runs experts of one layer over the rows that they serve, once `after` is done.

        Their weights must stay as they are until the fence that comes back is done. Raises KernelError.
        """

    def scores(self) -> Scores:
        """Waits for the pass, and ends it."""

    def peek(self, value: Value) -> Floats:
        """Waits, and copies what a value holds in this pass, [rows, columns]: for tests and for debugging."""
