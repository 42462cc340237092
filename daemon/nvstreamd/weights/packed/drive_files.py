"""Which open files make up a packed model when parts of it lie on drives, and is a drive still what it was?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvstreamd.errors import BadVolume, ModelChanged
from nvstreamd.weights.packed.files import Elsewhere, OpenAs, OpenFile, follow_nobody, open_all
from nvstreamd.weights.packed.manifest import DriveHome
from nvstreamd.weights.packed.superblock import Stretch
from nvstreamd.weights.packed.volume import read_volume

AGAIN = "import the model again"


class Drives(Protocol):
    """Who can open the drives of this machine."""

    def open_block(self, serial: str, nsid: int, *, write: bool, stack: ExitStack) -> OpenFile:
        """The whole drive as a block device; `stack` closes it. Raises NvstreamError."""


@dataclass(frozen=True, slots=True)
class DriveFile(OpenFile):
    """A drive that holds a part of a model at `home`."""

    home: DriveHome

    def check_unchanged(self) -> None:
        """Raises ModelChanged when the drive does not say any more that this import lies there."""
        try:
            volume = read_volume(self, self.home.serial)
        except BadVolume as error:
            raise ModelChanged(error.message, f"{error.hint}; or {AGAIN}") from error
        if volume is None or volume.uuid != self.home.volume:
            found = "nothing of nvstreamd's" if volume is None else f"volume {volume.uuid}"
            raise ModelChanged(f"{self.path}: carries {found}, the model was written to {self.home.volume}", AGAIN)
        entry = volume.find(self.home.model)
        if entry is None or entry.part != Stretch(offset=self.home.offset, length=self.home.size):
            raise ModelChanged(f"{self.path}: import {self.home.model} is not on it any more", AGAIN)


def open_files(wanted: Sequence[Path | Elsewhere | DriveHome], drives: Drives, stack: ExitStack,
               open_as: OpenAs = follow_nobody) -> list[OpenFile]:
    """Opens files read-only and drives that still carry the model; `stack` closes them.

    Raises NotFound, BadModelFile, ModelChanged, or whatever error says why a drive cannot be opened.
    """
    return [_open(each, drives, stack, open_as) for each in wanted]


def _open(wanted: Path | Elsewhere | DriveHome, drives: Drives, stack: ExitStack, open_as: OpenAs) -> OpenFile:
    if not isinstance(wanted, DriveHome):
        return open_all([wanted], stack, open_as)[0]
    file = at_home(drives.open_block(wanted.serial, wanted.nsid, write=False, stack=stack), wanted)
    file.check_unchanged()
    return file


def at_home(file: OpenFile, home: DriveHome | None) -> OpenFile:
    """The file as the part of a model that it is: a whole drive knows which of its models is meant.

    Without a descriptor it is on a drive that the kernel gave up, which whoever reads it compares by its probes.
    """
    if home is None or file.fd < 0:
        return file
    return DriveFile(file.fd, file.path, file.size, file.mtime_ns, file.inode, home)
