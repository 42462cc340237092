"""Do buffered and direct reads work where models are kept? Tried on a file of our own, which leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from nvdma.arena import Arena
from nvdma.backends.direct import direct_alignment, open_direct
from nvdma.backends.uring import UringBackend
from nvdma.errors import BackendUnavailable, DmaError
from nvdma.select import FACTORIES
from nvdma.types import Read, Source
from nvstreamd.doctor.report import Reason

MIB = 1 << 20
SECONDS = 30.0
# What is read where nothing may be written.
OURSELVES = Path(__file__)


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of an attempt: what was `found`, and why it failed, if it did."""

    found: str
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Trials:
    """The attempts: to write below the `store`, to read it back, O_DIRECT there, and io_uring without a file."""

    store: Trial
    pread: Trial
    direct: Trial
    ring: Trial
    uring: Trial


def trials(store: Path) -> Trials:
    """Tries everything once. Of what fails the others still are tried."""
    with ExitStack() as stack:
        source, content, written = _subject(store, stack)
        return Trials(store=written, pread=_read("pread", source, content), direct=_tried(lambda: _direct(source)),
                      ring=_tried(_ring), uring=_read("uring", source, content))


def nearest(store: Path) -> Path:
    """The store, or the directory nearest to it while nothing was imported."""
    return next((path for path in (store, *store.parents) if os.path.exists(path)), Path("/"))


@contextmanager
def scratch_file(store: Path, nbytes: int) -> Iterator[tuple[IO[bytes], Path]]:
    """A file without a name, of `nbytes` random bytes on the disk, and where it lies. Raises OSError."""
    place = nearest(store)
    with TemporaryFile(dir=place) as file:
        for begin in range(0, nbytes, MIB):
            file.write(os.urandom(min(MIB, nbytes - begin)))
        file.flush()
        os.fsync(file.fileno())
        yield file, place


def why_not_written(place: Path, error: OSError) -> Reason:
    """Why there is no scratch file."""
    return Reason(f"no scratch file can be written in {place}: {error.strerror or error}",
                  "run this as root, see `df` for space, or name a directory that you may write to with `store` in "
                  "the configuration")


def _subject(store: Path, stack: ExitStack) -> tuple[Source, bytes, Trial]:
    """The file that is read, what is in it, and whether the store could be written."""
    place = nearest(store)
    try:
        file, _ = stack.enter_context(scratch_file(store, MIB))
    except OSError as error:
        ours = stack.enter_context(OURSELVES.open("rb"))
        content = ours.read()
        return Source(ours.fileno(), str(OURSELVES), len(content)), content, Trial(
            f"{place} cannot be written", why_not_written(place, error))
    missing = "" if place == store else f" ({store} is not there yet)"
    content = os.pread(file.fileno(), MIB, 0)
    return Source(file.fileno(), f"a scratch file in {place}", MIB), content, Trial(f"{place} can be written{missing}")


def _tried(attempt: Callable[[], str]) -> Trial:
    try:
        return Trial(attempt())
    except DmaError as error:
        return Trial("failed", Reason(error.what, error.hint))


def _direct(source: Source) -> str:
    with ExitStack() as stack:
        alignment = direct_alignment(source)
        open_direct(source, stack)
        return f"{source.path} opens with O_DIRECT, aligned to {alignment} bytes"


def _ring() -> str:
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(MIB))
        backend = UringBackend([], arena)
        backend.open()
        stack.callback(backend.close)
        return "buffers registered" if backend.facts.registered_buffers else "buffers not registered"


def _read(name: str, source: Source, content: bytes) -> Trial:
    return _tried(lambda: _read_back(name, source, content))


def _read_back(name: str, source: Source, content: bytes) -> str:
    """Reads all of the file through a backend into memory that has other bytes. Raises DmaError."""
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(-(-source.size // MIB) * MIB))
        arena.view[: source.size] = bytes(each ^ 0xFF for each in content)
        backend = FACTORIES[name]([source], arena, 1)
        backend.open()
        stack.callback(backend.close)
        alignment = backend.facts.alignment
        backend.submit([Read(0, 0, 0, -(-source.size // alignment) * alignment, 0)])
        backend.wait(SECONDS)
        if arena.view[: source.size] != content:
            raise BackendUnavailable(f"{source.path}: what {name} read differs from what was written",
                                     hint="look for errors of the drive in `dmesg`, and do not use this path")
        return f"every byte of {source.path} came back right"
