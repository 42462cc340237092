"""How does a test change what a drive says about itself, and look at it?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.volume import Lengths, Volume, format_volume, read_volume
from unit.weights.disks import Disks

SERIAL = "SPARE"
ROOM = Lengths(5 * 4096, 4096, 8192)
A, B, C = "a" * 32, "b" * 32, "c" * 32
Change = Callable[[OpenFile], object]
Names = list[tuple[str, str, bool]]


def on(disks: Disks, work: Callable[[OpenFile], object]) -> object:
    """Does something to the drive."""
    with ExitStack() as stack:
        return work(disks.open_block(SERIAL, 1, write=True, stack=stack))


def volume_of(file: OpenFile) -> Volume:
    found = read_volume(file, SERIAL)
    assert found is not None
    return found


def names(disks: Disks) -> Names | None:
    """(name, import, unfinished) of all that is on the drive; None when it is blank."""
    def look(file: OpenFile) -> Names | None:
        volume = read_volume(file, SERIAL)
        return None if volume is None else [(e.name, e.model, e.unfinished) for e in volume.models]

    return on(disks, look)  # type: ignore[return-value]


def reserve(name: str, model: str, lengths: Lengths = ROOM) -> Change:
    return lambda file: volume_of(file).reserve(name, model, lengths)


def blank(file: OpenFile) -> object:
    return format_volume(file, SERIAL)
