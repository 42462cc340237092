"""How does a test change what a drive says about itself, and look at it?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.volume import Lengths, Volume, format_volume, read_volume
from unit.weights.disks import Disks

SERIAL = "SPARE"
ROOM = Lengths(5 * 4096, 4096, 8192)
A, B, C = "a" * 32, "b" * 32, "c" * 32
T = TypeVar("T")
Change = Callable[[OpenFile], object]
Names = list[tuple[str, str, bool]]


def on(disks: Disks, work: Callable[[OpenFile], T]) -> T:
    """Does something to the drive."""
    with ExitStack() as stack:
        return work(disks.open_block(SERIAL, 1, write=True, stack=stack))


def volume_of(file: OpenFile) -> Volume:
    found = read_volume(file, SERIAL)
    assert found is not None
    return found


def names_in(file: OpenFile) -> Names | None:
    """What `names` says, of a drive that is open."""
    volume = read_volume(file, SERIAL)
    return None if volume is None else [(e.name, e.model, e.unfinished) for e in volume.models]


def names(disks: Disks) -> Names | None:
    """(name, import, unfinished) of all that is on the drive; None when it is blank."""
    return on(disks, names_in)


def reserve(name: str, model: str, lengths: Lengths = ROOM) -> Change:
    return lambda file: volume_of(file).reserve(name, model, lengths)


def blank(file: OpenFile) -> object:
    return format_volume(file, SERIAL)
