"""What do tests of devices share? Each that this machine has, weights of each type, and programs of one step.

A device takes programs alone: inputs come in as the embedding, results are peeked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nvdma.fence import DONE
from nvdma.memory import Memory, MemoryKind, Span
from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.arrays import Floats, Ints
from nvstreamd.kernels.cpu_device import CpuDevice
from nvstreamd.kernels.cpu_library import CpuContext, CpuLibrary, InstructionSet
from nvstreamd.kernels.device import Device, Scores, Visit
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.hybrid_device import HybridDevice
from nvstreamd.kernels.rows import PAGE_TOKENS, Rows, Stretch
from nvstreamd.kernels.torch_device import TorchDevice
from nvstreamd.program import (
    Activation,
    Add,
    Attend,
    Expert,
    Gated,
    Heads,
    KvGroup,
    Matrix,
    Mix,
    Model,
    Norm,
    Program,
    Project,
    Rope,
    Route,
    Score,
    Step,
    Value,
)
from support import real_card
from support.fiber_gpu import FiberCompiler, FiberDriver
from support.random_blocks import random_blocks

INSTRUCTION_SETS = [found for found in CpuLibrary().instruction_sets() if found.usable]
PAGES = 16
ONE_KV = KvGroup(1, 1, 2)


@contextmanager
def cpu(kernel: InstructionSet, threads: int = 1) -> Iterator[CpuDevice]:
    """The C++ kernels for one instruction set."""
    with ExitStack() as stack:
        context = CpuContext(CpuLibrary(), kernel, threads)
        context.open(stack)
        yield CpuDevice(context)


@contextmanager
def oracle(threads: int = 1) -> Iterator[TorchDevice]:
    """Torch as what a program means."""
    yield TorchDevice(threads)


@contextmanager
def card(threads: int = 1) -> Iterator[GpuDevice]:
    """A card's kernels: on a processor's fibers, or on the card that the environment names."""
    with ExitStack() as stack:
        driver, compiler = real_card.open_card() if real_card.named() else (FiberDriver(), FiberCompiler())
        yield GpuDevice(driver, compiler, stack)


@contextmanager
def hybrid(threads: int = 1) -> Iterator[HybridDevice]:
    """A card, and the processor beside it: weights lie in host memory where nothing else is said."""
    with card() as near, cpu(INSTRUCTION_SETS[0], threads) as processor:
        yield HybridDevice(near, processor)


def every_device() -> dict[str, Callable[[int], AbstractContextManager[Device]]]:
    """By name: what makes the device of a number of threads, as a context manager."""
    made: dict[str, Callable[[int], AbstractContextManager[Device]]] = {"torch": oracle, "card": card}
    for kernel in INSTRUCTION_SETS:
        made[kernel.name] = lambda threads, kernel=kernel: cpu(kernel, threads)
    return made


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix as GGUF lays it out, uint8 [rows * row bytes], and its bias [rows]."""

    type: GgmlType
    rows: int
    columns: int
    data: npt.NDArray[np.uint8]
    bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class At:
    """A tensor among the weights of a stage."""

    type: GgmlType
    shape: tuple[int, ...]
    offset: int


class Packed:
    """The weights of a stage in memory: tensors one behind the other, from odd multiples of 4 on."""

    def __init__(self, *, on_card: bool = False) -> None:
        """Beside a card with a processor they lie in host memory, unless `on_card`."""
        self.on_card = on_card
        self.tensors: dict[str, At] = {}
        self._data = bytearray(4)

    def add(self, name: str, kind: GgmlType, shape: tuple[int, ...], data: npt.NDArray[np.uint8]) -> str:
        """Puts a tensor there."""
        self.tensors[name] = At(kind, shape, len(self._data))
        self._data += data.tobytes()
        self._data += bytes(-len(self._data) % 8 + 4)
        return name

    def vector(self, name: str, values: Floats, kind: GgmlType = ggml.F32) -> str:
        """Puts a vector there."""
        data = {ggml.F32: values, ggml.F16: values.astype(np.float16)}[kind]
        return self.add(name, kind, values.shape, np.ascontiguousarray(data).view(np.uint8))

    def matrix(self, name: str, weight: Weight) -> Matrix:
        """Puts a matrix there, and its bias."""
        bias = None if weight.bias is None else self.vector(f"{name}.bias", weight.bias)
        name = self.add(name, weight.type, (weight.rows, weight.columns), weight.data)
        return Matrix(name, weight.rows, weight.columns, bias)

    def span(self) -> Span:
        """All of it; it stays where it is as long as this object."""
        self._array = np.frombuffer(bytes(self._data) + bytes(64), np.uint8)
        return Span(Memory(MemoryKind.HOST, self._array.ctypes.data, self._array.size), 0, len(self._data))

    def on(self, device: Device) -> Span:
        """All of it where the device wants it: a card in its own memory and form."""
        if isinstance(device, HybridDevice) and self.on_card:
            device = device.card
        if not isinstance(device, GpuDevice):
            return self.span()
        nbytes = device.own.form(self.tensors).nbytes
        address = device.driver.allocate(nbytes)
        device.stack.callback(device.driver.free, address)
        slot = Span(Memory(MemoryKind.VRAM, address, nbytes), 0, nbytes)
        assert device.own.bring(self.tensors, self.span(), slot).wait(10.0)
        return slot


def begin(device: Device, x: Floats, rows: Rows, pages: int = PAGES) -> None:
    """Opens a device for a hidden state like x [rows, columns], and begins a pass with it."""
    device.open(Model(Value(0, x.shape[1]), 1, (ONE_KV,), ()), Packed().span(), {}, [pages])
    device.begin(rows, ggml.F32, np.ascontiguousarray(x).tobytes())


def alone(count: int, groups: int = 1) -> Rows:
    """Rows of one sequence, from its beginning."""
    return Rows([Stretch(0, count, 0, [range(-(-count // PAGE_TOKENS))] * groups)], [])


def run(device: Device, x: Floats, steps: Sequence[Step], packed: Packed, rows: Rows | None = None,
        kv: Sequence[KvGroup] = (ONE_KV,), vocabulary: int = 1) -> None:
    """One pass of one stage."""
    rows = rows or alone(x.shape[0], len(kv))
    device.open(Model(Value(0, x.shape[1]), vocabulary, tuple(kv), ()), Packed().span(), {}, [PAGES] * len(kv))
    ready = device.prepare(Program(tuple(steps)), packed.tensors)
    device.begin(rows, ggml.F32, np.ascontiguousarray(x).tobytes())
    device.run(ready, packed.on(device), 0, DONE)


def project(device: Device, x: Floats, norm: Floats | None, epsilon: float, weights: Sequence[Weight]) -> list[Floats]:
    """x, normed where there is a norm, times each of the weights."""
    packed = Packed()
    outs = [Value(number + 1, weight.rows) for number, weight in enumerate(weights)]
    by = None if norm is None else Norm(packed.vector("norm", norm), epsilon)
    matrices = tuple(packed.matrix(f"w{number}", weight) for number, weight in enumerate(weights))
    run(device, x, [Project(Value(0, x.shape[1]), by, matrices, tuple(outs))], packed)
    return [device.peek(out) for out in outs]


def product(device: Device, x: Floats, weight: Weight) -> Floats:
    """x times weight.T, [rows, out]."""
    return project(device, x, None, 0.0, [weight])[0]


def identity(columns: int) -> Weight:
    """Whose products are the activations themselves, to the bit."""
    return Weight(ggml.F32, columns, columns, np.eye(columns, dtype=np.float32).view(np.uint8).ravel())


def rms_norm(device: Device, x: Floats, norm: Floats, epsilon: float) -> Floats:
    """RMSNorm of x."""
    return project(device, x, norm, epsilon, [identity(x.shape[1])])[0]


def gated(device: Device, x: Floats, norm: Floats, epsilon: float, gate: Weight, up: Weight,
          activation: Activation = Activation.SILU) -> Floats:
    """activation(h times gate) * (h times up), h being normed x."""
    packed, hidden, out = Packed(), Value(0, x.shape[1]), Value(1, gate.rows)
    by = Norm(packed.vector("norm", norm), epsilon)
    run(device, x, [Gated(hidden, by, packed.matrix("gate", gate), packed.matrix("up", up), out,
                            activation)], packed)
    return device.peek(out)


def added(device: Device, x: Floats, weight: Weight) -> Floats:
    """x + x times weight.T of a square weight."""
    packed, hidden, copy = Packed(), Value(0, x.shape[1]), Value(1, x.shape[1])
    run(device, x, [Project(hidden, None, (packed.matrix("same", identity(x.shape[1])),), (copy,)),
                    Add(hidden, copy, packed.matrix("w", weight))], packed)
    return device.peek(hidden)


def scored(device: Device, x: Floats, norm: Floats, pieces: Mapping[int, Weight], vocabulary: int,
           wanted: Sequence[int]) -> Scores:
    """Scores of the wanted rows; `pieces` of the head by their first column, a stage each."""
    hidden = Value(0, x.shape[1])
    device.open(Model(hidden, vocabulary, (ONE_KV,), ()), Packed().span(), {}, [PAGES])
    stages = []
    for first, weight in pieces.items():
        packed = Packed()
        step = Score(hidden, Norm(packed.vector("norm", norm), 1e-5), packed.matrix("head", weight), first)
        stages.append((device.prepare(Program((step,)), packed.tensors), packed.on(device), packed))
    device.begin(replace(alone(x.shape[0]), wanted=wanted), ggml.F32, x.tobytes())
    for number, (ready, span, _) in enumerate(stages):
        device.run(ready, span, number, DONE)
    return device.scores()


def rope_of(heads: Heads, *, interleaved: bool = True) -> Rope:
    """Heads turned as models with a base of 10000 turn them."""
    return Rope(heads.dim, 10000.0, 1.0, interleaved)


@dataclass(frozen=True, slots=True)
class Attention:
    """q, k and v of one layer, projected from a narrow hidden state: a token's row is all that they depend on."""

    packed: Packed
    steps: tuple[Step, ...]
    out: Value
    kv: KvGroup

    @classmethod
    def of(cls, heads: Heads, rope: Rope, weights: Sequence[Weight], norms: Sequence[Floats] = (), layer: int = 0,
           window: int | None = None) -> Attention:
        """`weights` are those of q, k and v, their columns the hidden state's."""
        packed = Packed()
        values = [Value(number + 1, weight.rows) for number, weight in enumerate(weights)]
        out = Value(4, heads.queries * heads.dim)
        by = [Norm(packed.vector(f"n{number}", norm), 1e-5) for number, norm in enumerate(norms)]
        return cls(packed, (
            Project(Value(0, weights[0].columns), None,
                    tuple(packed.matrix(f"w{number}", weight) for number, weight in enumerate(weights)), tuple(values)),
            Attend(*values, out, heads, rope, (by[0], by[1]) if by else None, 0, layer),
        ), out, KvGroup(layer + 1, heads.keys, heads.dim, window))

    def open(self, device: Device, pages: int) -> object:
        """Opens a device for it."""
        hidden = self.steps[0].x  # type: ignore[union-attr]
        device.open(Model(hidden, 1, (self.kv,), ()), Packed().span(), {}, [pages])
        return device.prepare(Program(self.steps), self.packed.tensors)

    def attend(self, device: Device, ready: object, x: Floats, stretches: Sequence[Stretch]) -> Floats:
        """What rows x of these stretches find, over the cache as it is."""
        device.begin(Rows(stretches, []), ggml.F32, np.ascontiguousarray(x).tobytes())
        device.run(ready, self.packed.on(device), 0, DONE)
        return device.peek(self.out)


def random_weight(kind: GgmlType, rows: int, columns: int, seed: int = 0) -> Weight:
    """A matrix of random blocks, entries of about 1 / sqrt(columns)."""
    rng = np.random.default_rng([seed, rows, columns])
    blocks = random_blocks(kind, rows * columns // kind.block_length, columns**-0.5, rng)
    return Weight(kind, rows, columns, blocks.copy())


def activations(rows: int, columns: int, seed: int = 1) -> Floats:
    """Normal numbers, [rows, columns] float32."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@dataclass(frozen=True, slots=True)
class Routed:
    """A layer of experts: the `experts` and `weights` of each row [rows, used], and what became of the rows `x`."""

    experts: Ints
    weights: Floats
    x: Floats


def routed(device: Device, x: Floats, norm: Floats, router: Weight, experts: Sequence[tuple[Weight, Weight, Weight]],
           used: int, order: Sequence[int] = (), *, resting: bool = False) -> Routed:
    """A router and its experts, each (gate, up, down); they come in `order`, each in a call of its own, or at once.

    Where they are `resting` in a card's memory, nobody asks which are wanted.
    """
    packed, columns = Packed(on_card=True), x.shape[1]
    hidden, h, weights, parts = (Value(i, n) for i, n in enumerate((columns, columns, used, used * columns)))
    by = Norm(packed.vector("norm", norm), 1e-5)
    run(device, x, [Route(hidden, by, packed.matrix("router", router), h, weights)], packed)
    homes = []
    for number, (gate, up, down) in enumerate(experts):
        home = Packed(on_card=resting or number % 3 == 0)
        step = Expert(h, home.matrix("gate", gate), home.matrix("up", up), home.matrix("down", down), parts)
        homes.append((device.prepare(Program((step,)), home.tensors), home))
    mix = device.prepare(Program((Mix(hidden, weights, parts),)), {})
    rest = device.resting if resting else None
    everybody = None if rest is None else rest.prepare_all(
        Program((step,)), [home.tensors for _, home in homes], [home.on(device) for _, home in homes])
    # Values have room from the next pass on.
    ready = device.prepare(Program((Route(hidden, by, Matrix("router", router.rows, columns), h, weights),)),
                           packed.tensors)
    device.begin(alone(x.shape[0]), ggml.F32, np.ascontiguousarray(x).tobytes())
    device.run(ready, packed.on(device), 0, DONE)
    routing = device.routing().copy()
    visits = {int(expert): Visit(homes[expert][0], homes[expert][1].on(device),
                                 np.flatnonzero(routing.reshape(-1) == expert)) for expert in np.unique(routing)}
    if rest is not None:
        rest.run_all(everybody, DONE)
    else:
        for calls in ([[each] for each in order if each in visits] if order else [list(visits)]):
            device.experts([visits[each] for each in calls], DONE)
    found = device.peek(weights)
    device.run(mix, packed.on(device), 0, DONE)
    return Routed(routing, found, device.peek(hidden))
