"""How does a regular file stand in for an NVMe drive, and how is a model imported onto some?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nvstreamd.errors import NotFound
from nvstreamd.weights.packed.files import OpenFile, adopt
from nvstreamd.weights.packed.importer import Importer
from nvstreamd.weights.packed.targets import DriveTarget
from nvstreamd.weights.packed.volume import Volume, read_volume
from unit.weights.models import model_at
from unit.weights.stores import Report

MIB = 1 << 20
PAIR = ["FAST", "SLOW"]


class Disks:
    """Drives of this machine by serial number: files of `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, serial: str, size: int = 16 * MIB) -> Path:
        """A blank drive of `size` bytes."""
        path = self.directory / serial
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def open_block(self, serial: str, nsid: int, *, write: bool, stack: ExitStack) -> OpenFile:
        """See Drives."""
        try:
            fd = os.open(self.directory / serial, os.O_RDWR if write else os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound(f"no drive {serial}", "add it") from None
        stack.callback(os.close, fd)
        return adopt(fd, f"/dev/{serial}")

    @contextmanager
    def volume(self, serial: str) -> Iterator[Volume | None]:
        """What a drive carries, open for changes."""
        with ExitStack() as stack:
            yield read_volume(self.open_block(serial, 1, write=True, stack=stack), serial)

    def pack(self, source: Path, home: Path, serials: Sequence[str], report: Report = lambda _: None,
             name: str = "m", rates: Sequence[int] | None = None) -> Path:
        """Imports the GGUF at `source` onto drives that read at `rates`, else as measured; returns the store."""
        with ExitStack() as stack, model_at(source) as model:
            targets = [DriveTarget(name, serial, 1, self.open_block(serial, 1, write=True, stack=stack))
                       for serial in serials]
            importer = Importer(name, model.manifest, model.data, targets, home) if rates is None else \
                Importer(name, model.manifest, model.data, targets, home, lambda _: list(rates))
            return importer.run(report)
