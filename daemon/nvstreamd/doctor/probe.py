"""How fast is each path here, and does it bring the same bytes as the others? Files, for --probe."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.bandwidth import measure
from nvdma.errors import DmaError
from nvdma.select import FACTORIES
from nvdma.types import Read, Source
from nvstreamd.doctor.report import Probed, Reason
from nvstreamd.doctor.scratch import scratch_file, why_not_written
from nvstreamd.errors import InvalidRequest, NotFound

MIB = 1 << 20
MOST_BYTES = 64 * MIB
BLOCK, DEPTH = MIB, 16
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Opened:
    """A path that reads: its backend over the one source, and the memory it reads into."""

    name: str
    backend: Backend
    arena: Arena


def probe_file(paths: Sequence[str], path: Path) -> tuple[Probed, ...]:
    """Reads the first 64 MiB of a file through each of `paths` ('pread', 'uring'). Raises NotFound, InvalidRequest."""
    with ExitStack() as stack:
        try:
            # What is no file must not keep us waiting for its other end.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise NotFound(f"{path}: {error.strerror}", "name a file that you may read, or none") from error
        stack.callback(os.close, fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            raise InvalidRequest(f"{path} is no regular file, or empty", "name a file that has bytes, or none",
                                 field="probe")
        return probe_source(paths, Source(fd, str(path), min(found.st_size, MOST_BYTES)))


def probe_scratch(paths: Sequence[str], store: Path) -> tuple[Probed, ...]:
    """The same with a file of our own below the store, which leaves no trace."""
    with ExitStack() as stack:
        try:
            file, place = stack.enter_context(scratch_file(store, MOST_BYTES))
        except OSError as error:
            reason = why_not_written(store, error)
            return tuple(Probed(path, "a scratch file", reason=reason) for path in paths)
        return probe_source(paths, Source(file.fileno(), f"a scratch file in {place}", MOST_BYTES))


def probe_source(paths: Sequence[str], source: Source) -> tuple[Probed, ...]:
    """Compares first: a figure of a path that reads wrong is worth nothing."""
    with ExitStack() as stack:
        opened, failed = [], {}
        for path in paths:
            try:
                opened.append(_open(path, source, stack))
            except DmaError as error:
                failed[path] = Reason(error.what, error.hint)
        failed |= _compared(opened, source)
        good = [each for each in opened if each.name not in failed]
        done = {each.name: _measured(each, source, [other.name for other in good if other is not each])
                for each in good}
        return tuple(done.get(path) or Probed(path, source.path, reason=failed[path]) for path in paths)


def _open(path: str, source: Source, stack: ExitStack) -> _Opened:
    with ExitStack() as local:
        arena = local.enter_context(Arena(DEPTH * BLOCK))
        backend = FACTORIES[path]([source], arena, DEPTH)
        backend.open()
        local.callback(backend.close)
        stack.enter_context(local.pop_all())
        return _Opened(path, backend, arena)


def _compared(opened: Sequence[_Opened], source: Source) -> dict[str, Reason]:
    """Reads everything through each, a stretch at a time; why those fail that fail, or differ."""
    failed: dict[str, Reason] = {}
    for begin in range(0, source.size, DEPTH * BLOCK):
        nbytes = min(DEPTH * BLOCK, source.size - begin)
        good = [each for each in opened if each.name not in failed]
        for each in good:
            try:
                _read_stretch(each, begin, nbytes)
            except DmaError as error:
                failed[each.name] = Reason(error.what, error.hint)
        good = [each for each in good if each.name not in failed]
        if any(each.arena.view[:nbytes] != good[0].arena.view[:nbytes] for each in good[1:]):
            # Which of them is wrong cannot be told from two.
            names = " and ".join(each.name for each in good)
            reason = Reason(f"{source.path}: {names} differ within bytes {begin} to {begin + nbytes}",
                            "see that nothing writes to the file, then look for errors of the drive in `dmesg`")
            failed |= {each.name: reason for each in good}
    return failed


def _read_stretch(opened: _Opened, begin: int, nbytes: int) -> None:
    """Into memory in which what did not arrive shows: each path's has other bytes."""
    opened.arena.view[:nbytes] = opened.name[:1].encode() * nbytes
    alignment = opened.backend.facts.alignment
    opened.backend.submit([
        Read(tag, 0, begin + at, -(-min(BLOCK, nbytes - at) // alignment) * alignment, at)
        for tag, at in enumerate(range(0, nbytes, BLOCK))])
    while opened.backend.in_flight:
        opened.backend.wait(SECONDS)


def _measured(opened: _Opened, source: Source, others: Sequence[str]) -> Probed:
    # What the comparison left in the page cache would be read from there.
    with suppress(OSError):
        os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        found = measure(opened.backend, [source], opened.arena, BLOCK, DEPTH)
    except DmaError as error:
        return Probed(opened.name, source.path, reason=Reason(error.what, error.hint))
    return Probed(opened.name, source.path, found.nbytes, found.bytes_per_second, " and ".join(others))
