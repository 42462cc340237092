"""What do tests of a card's device share? It on fibers, whose driver can be asked; and passes, on the CPU as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from nvdma.fence import DONE
from nvstreamd import ggml
from nvstreamd.kernels.arrays import Floats
from nvstreamd.kernels.device import Device
from nvstreamd.kernels.gpu_device import GpuDevice
from nvstreamd.kernels.rows import Rows, Stretch
from nvstreamd.program import Heads
from support.fiber_gpu import FiberCompiler, FiberDriver
from unit.kernels import rig
from unit.kernels.rig import cpu, random_weight

HEADS = Heads(6, 2, 16)
CPU = rig.INSTRUCTION_SETS[0]


@contextmanager
def fibers(memory: int = 1 << 30, *, reads_host: bool = True) -> Iterator[tuple[GpuDevice, FiberDriver]]:
    """The device, and the driver beneath it, of which nothing is in use afterwards."""
    driver = FiberDriver(memory, reads_host=reads_host)
    with ExitStack() as stack:
        yield GpuDevice(driver, FiberCompiler(), stack), driver
    assert driver.used == 0 and not driver.registered and driver.graphs == 0


def attention(heads: Heads = HEADS, columns: int = 64, window: int | None = None) -> rig.Attention:
    widths = (heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.dim)
    return rig.Attention.of(heads, rig.rope_of(heads),
                            [random_weight(ggml.Q8_0, width, columns, i) for i, width in enumerate(widths)],
                            window=window)


# A pass: rows, and where they belong.
Turn = tuple[Floats, Sequence[Stretch]]


def attended(device: Device, layer: rig.Attention, pages: int, turns: Sequence[Turn]) -> list[Floats]:
    """What the rows of some passes find, one after the other, weights lying where they lay."""
    ready, found = layer.open(device, pages), []
    weights = layer.packed.on(device)
    for x, stretches in turns:
        device.begin(Rows(stretches, []), ggml.F32, x.tobytes())
        device.run(ready, weights, 0, DONE)
        found.append(device.peek(layer.out))
    return found


def assert_same(found: Sequence[Floats], wanted: Sequence[Floats]) -> None:
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert np.isfinite(other).all() and np.array_equal(one, other), number


def attended_by_cpu(layer: rig.Attention, pages: int, turns: Sequence[Turn]) -> list[Floats]:
    with cpu(CPU) as device:
        return attended(device, layer, pages, turns)
