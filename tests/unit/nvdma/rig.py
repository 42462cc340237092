"""Files, sources and an arena for one backend under test: how does the same test run over every backend?

A rig keeps each file twice: on disk for the backends that read disks, as an image for the one that does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from errno import EINVAL
from pathlib import Path
from random import Random

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.backends.pread import PreadBackend
from nvdma.backends.uring import UringBackend
from nvdma.errors import ReadError
from nvdma.nvme.drive import Drive
from nvdma.pci.dma import BusAddresses
from nvdma.types import Completion, Read, Source
from support.nvme_access import ScriptedAccess, Sparse, pages_of
from support.nvme_device import ScriptedDevice
from support.nvme_firmware import Image as DriveImage
from support.nvme_firmware import Model
from support.scripted_backend import Ending, Image, Script, ScriptedBackend

PAGE = 4096
MIB = 1 << 20
SECONDS = 20.0
# Those that read files, which can be cut, be closed and fail with an errno.
FILE_KINDS = ("pread", "uring", "uring-unregistered", "memory")
# Into the arena's memory; into a window of a peer's, for which the same memory stands.
DRIVE_KINDS = ("nvme_host", "nvme_vram")
KINDS = FILE_KINDS + DRIVE_KINDS


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """Reproducible bytes in which a wrong offset shows."""
    return Random(seed).randbytes(nbytes)


@dataclass(slots=True)
class ScriptedDrive:
    """A drive with every file of a rig on it, one behind the other."""

    content: Sparse = field(default_factory=lambda: Sparse(1 << 40))
    places: dict[str, OnDrive] = field(default_factory=dict)
    end: int = PAGE

    def add(self, path: str, stretches: dict[int, bytes], size: int) -> None:
        """Puts a file behind those that are there; between them lies a page."""
        self.places[path] = OnDrive(0, 1, self.end)
        for at, data in stretches.items():
            self.content.put(self.end + at, data)
        self.end += pages_of(size) + PAGE

    def backend(self, name: str, sources: Sequence[Source], arena: Arena, depth: int, max_read: int,
                endless: bool) -> Backend:
        """A closed backend; its controller transfers at most `max_read` bytes a command."""
        mdts = (max_read // PAGE).bit_length() - 1 if max_read < 2 * MIB else 0
        device = ScriptedDevice({1: DriveImage(self.content)}, Model(mdts=mdts))
        device.script.manual = endless
        access = ScriptedAccess(device)

        def window(_: Drive, stack: ExitStack) -> BusAddresses:
            return access.map_window(arena.view, arena.address, stack)

        places = [self.places[source.path] for source in sources]
        return NvmeBackend(name, [Drive(access, "nvme7", depth)], places, sources, arena,
                           target=window if name == "nvme_vram" else None)


@dataclass
class Rig:
    """Makes files, and backends of one kind over them; everything ends with the stack."""

    kind: str
    folder: Path
    stack: ExitStack
    images: dict[str, Image] = field(default_factory=dict)
    drive: ScriptedDrive = field(default_factory=ScriptedDrive)

    def file(self, name: str, stretches: dict[int, bytes], size: int | None = None) -> Source:
        """A file with ``stretches`` (bytes by offset) and holes elsewhere, opened O_RDONLY."""
        path = self.folder / name
        size = max(at + len(data) for at, data in stretches.items()) if size is None else size
        with path.open("wb") as file:
            for at, data in stretches.items():
                file.seek(at)
                file.write(data)
            file.truncate(size)
        self.images[str(path)] = Image(size, dict(stretches))
        self.drive.add(str(path), stretches, size)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.stack.callback(os.close, fd)
        return Source(fd, str(path), size)

    def truncate(self, source: Source, size: int) -> None:
        """Somebody else cuts the file."""
        os.truncate(source.path, size)
        self.images[source.path].size = size

    def arena(self, nbytes: int, canary: int = 0) -> Arena:
        """An open arena filled with ``canary``."""
        arena = self.stack.enter_context(Arena(nbytes))
        arena.view[:] = bytes([canary]) * nbytes
        return arena

    def backend(
        self,
        sources: Sequence[Source],
        arena: Arena,
        depth: int = 8,
        *,
        failing: Sequence[int] = (),
        endless: Sequence[int] = (),
        max_read: int = 64 << 20,
    ) -> Backend:
        """An open backend. The scripted kind makes tags in ``failing`` fail, those in ``endless`` not end."""
        backend = self.closed_backend(
            sources, arena, depth, failing=failing, endless=endless, max_read=max_read
        )
        backend.open()
        self.stack.callback(backend.close)
        return backend

    def closed_backend(
        self,
        sources: Sequence[Source],
        arena: Arena,
        depth: int = 8,
        *,
        failing: Sequence[int] = (),
        endless: Sequence[int] = (),
        max_read: int = 64 << 20,
    ) -> Backend:
        """A backend not opened yet."""
        endings = {tag: Ending(errno=EINVAL) for tag in failing} | {tag: Ending(polls=None) for tag in endless}
        script = Script(endings, newest_first=True)
        makers: dict[str, Callable[[], Backend]] = {
            "pread": lambda: PreadBackend(sources, arena, depth, max_read=max_read),
            "uring": lambda: UringBackend(sources, arena, depth, max_read=max_read),
            "uring-unregistered": lambda: UringBackend(
                sources, arena, depth, max_read=max_read, registered=False
            ),
            "memory": lambda: ScriptedBackend(
                self.images, sources, arena, depth, max_read=max_read, script=script
            ),
        }
        if self.kind in DRIVE_KINDS:
            return self.drive.backend(self.kind, sources, arena, depth, max_read, bool(endless))
        return makers[self.kind]()


def drain(backend: Backend) -> tuple[dict[int, int], list[ReadError]]:
    """Wait for everything in flight: bytes by tag, and the errors."""
    done: dict[int, int] = {}
    errors: list[ReadError] = []
    while backend.in_flight:
        try:
            note(done, backend.wait(SECONDS))
        except ReadError as error:
            errors.append(error)
    return done, errors


def note(done: dict[int, int], completions: Sequence[Completion]) -> None:
    """Add ``completions``; a tag may complete once only."""
    for completion in completions:
        assert completion.tag not in done, f"tag {completion.tag} completed twice"
        done[completion.tag] = completion.nbytes


def read_in_turns(backend: Backend, reads: Sequence[Read]) -> dict[int, int]:
    """Keep the queue full until all of ``reads`` are done; bytes by tag. No error is expected."""
    done: dict[int, int] = {}
    waiting = list(reversed(reads))
    while waiting or backend.in_flight:
        room = min(backend.facts.depth - backend.in_flight, len(waiting))
        backend.submit([waiting.pop() for _ in range(room)])
        note(done, backend.wait(SECONDS))
    return done
