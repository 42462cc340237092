"""How fast is a claimed drive through our own queues, and does it bring the same bytes twice? For --probe.

The kernel cannot read a drive that is ours: there is nothing else to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.bandwidth import measure
from nvdma.errors import BackendUnavailable, DmaError
from nvdma.nvme.drive import Drive
from nvdma.pci.access import Access, access_of
from nvdma.types import NVME_HOST, Read, Source
from nvstreamd.doctor.report import Probed, Reason
from nvstreamd.errors import HardwareError
from nvstreamd.hardware.held import HeldDrive

MIB = 1 << 20
NAMESPACE = 1
DEPTH = 32
MEASURED_BYTES = 64 * MIB
COMPARED_BYTES = MIB
POISONS = (0xA5, 0x5A)
SECONDS = 60.0


def probe_claimed(drive: HeldDrive) -> Probed:
    """Opens a drive that is ours, reads, and closes it: the drive is reset on the way. Needs root."""
    what = f"{drive.address} ({drive.serial})"
    try:
        with ExitStack() as stack:
            opened = drive.open(stack, stack)
            return probe_access(access_of(opened.grant, opened.descriptors), what)
    except DmaError as error:
        return Probed(NVME_HOST, what, reason=Reason(error.what, error.hint))
    except HardwareError as error:
        return Probed(NVME_HOST, what, reason=Reason(error.message, error.hint))


def probe_access(access: Access, what: str, nbytes: int = MEASURED_BYTES) -> Probed:
    """Reads the first `nbytes` of a drive's first namespace. Raises DmaError."""
    # Large enough for the comparison as well as for the longest reads, each at its own place.
    with Arena(DEPTH * MIB) as arena:
        source = Source(-1, what, nbytes)
        with _opened(access, what, source, arena) as backend:
            _compare(backend, arena, what, min(nbytes, COMPARED_BYTES))
            found = measure(backend, [source], arena, min(backend.facts.max_read, MIB), backend.facts.depth)
    return Probed(NVME_HOST, what, found.nbytes, found.bytes_per_second, "when it was read before")


@contextmanager
def _opened(access: Access, name: str, source: Source, arena: Arena) -> Iterator[NvmeBackend]:
    backend = NvmeBackend(NVME_HOST, [Drive(access, name, DEPTH)], [OnDrive(0, NAMESPACE, 0)], [source], arena)
    backend.open()
    try:
        yield backend
    finally:
        backend.close()


def _compare(backend: NvmeBackend, arena: Arena, what: str, nbytes: int) -> None:
    """Twice the same bytes, over other ones each time: what did not arrive shows. Raises BackendUnavailable."""
    first, second = (_read_over(backend, arena, nbytes, poison) for poison in POISONS)
    if first != second:
        raise BackendUnavailable(f"{what}: its first {nbytes} bytes, read twice, differ or did not arrive",
                                 hint="look for faults of the IOMMU (DMAR, AMD-Vi) in `dmesg`; give the drive back: "
                                      "`nvstreamd release`")


def _read_over(backend: NvmeBackend, arena: Arena, nbytes: int, poison: int) -> bytes:
    arena.view[:nbytes] = bytes([poison]) * nbytes
    step = backend.facts.max_read
    waiting = [Read(at, 0, at, min(step, nbytes - at), at) for at in range(0, nbytes, step)]
    while waiting or backend.in_flight:
        room = backend.facts.depth - backend.in_flight
        backend.submit([waiting.pop() for _ in range(min(room, len(waiting)))])
        backend.wait(SECONDS)
    return bytes(arena.view[:nbytes])
