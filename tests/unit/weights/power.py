"""What may be on a drive when the power fails? Whole syncs, and of what was not synced yet any sectors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512
Sectors = dict[int, bytes]


class PowerCut(BaseException):
    """The machine is off: nothing that it would have done happens."""


@dataclass(slots=True)
class Writes:
    """The writes of a process to its disks, one list of sectors between two syncs."""

    epochs: list[Sectors] = field(default_factory=lambda: [{}])

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Notes what pwrite(2) and fdatasync(2) are asked for, and does it."""
        pwrite, fdatasync = os.pwrite, os.fdatasync

        def noted_write(fd: int, data: Any, offset: int) -> int:
            assert not offset % SECTOR and not len(data) % SECTOR, "a write of half a sector reads first"
            for begin in range(0, len(data), SECTOR):
                self.epochs[-1][offset + begin] = bytes(data[begin : begin + SECTOR])
            return pwrite(fd, data, offset)

        def noted_sync(fd: int) -> None:
            fdatasync(fd)
            self.epochs.append({})

        patch.setattr(os, "pwrite", noted_write)
        patch.setattr(os, "fdatasync", noted_sync)

    def images(self, path: Path) -> Iterator[None]:
        """Makes the file at `path`, as it was before the writes, whatever a power cut could have left of it."""
        with path.open("r+b", buffering=0) as disk:
            for epoch in self.epochs:
                before = {offset: os.pread(disk.fileno(), SECTOR, offset) for offset in epoch}
                for chosen in product([False, True], repeat=len(epoch)):
                    for (offset, after), is_written in zip(epoch.items(), chosen, strict=True):
                        os.pwrite(disk.fileno(), after if is_written else before[offset], offset)
                    yield


def cut_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """The power fails instead of the change of that number, counted from 0."""
    left = number

    def guarded(name: str, call: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal left
            if not left:
                raise PowerCut(name)
            left -= 1
            return call(*given, **named)
        return run

    for name in ("pwrite", "write", "fsync", "fdatasync", "rename", "unlink"):
        patch.setattr(os, name, guarded(name, getattr(os, name)))
