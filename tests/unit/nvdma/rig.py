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
from nvdma.backends.memory import Image, MemoryBackend, Script, Step
from nvdma.backends.pread import PreadBackend
from nvdma.backends.uring import UringBackend
from nvdma.errors import ReadError
from nvdma.types import Completion, Read, Source

PAGE = 4096
MIB = 1 << 20
SECONDS = 20.0
KINDS = ("pread", "uring", "uring-unregistered", "memory")


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """Reproducible bytes in which a wrong offset shows."""
    return Random(seed).randbytes(nbytes)


@dataclass
class Rig:
    """Makes files, and backends of one kind over them; everything ends with the stack."""

    kind: str
    folder: Path
    stack: ExitStack
    images: dict[str, Image] = field(default_factory=dict)

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
        steps = {tag: Step(errno=EINVAL) for tag in failing} | {tag: Step(polls=None) for tag in endless}
        script = Script(steps, newest_first=True)
        makers: dict[str, Callable[[], Backend]] = {
            "pread": lambda: PreadBackend(sources, arena, depth, max_read=max_read),
            "uring": lambda: UringBackend(sources, arena, depth, max_read=max_read),
            "uring-unregistered": lambda: UringBackend(
                sources, arena, depth, max_read=max_read, registered=False
            ),
            "memory": lambda: MemoryBackend(
                self.images, sources, arena, depth, max_read=max_read, script=script
            ),
        }
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
