"""Which of the ways to read works here, and why were the better ones refused?

A candidate is taken only after bytes read through it have equalled the same bytes read with preadv(2), or, of a drive
that the kernel has given up, what somebody noted of them when the kernel read them last.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.backends.pread import PreadBackend
from nvdma.backends.uring import UringBackend
from nvdma.errors import ArenaExhausted, BackendUnavailable, DmaError, ReadFailed, ShortRead
from nvdma.types import Read, Source, split

MIB = 1 << 20
PROBE_TIMEOUT_SECONDS = 30.0

Factory = Callable[[Sequence[Source], Arena, int], Backend]

# Those that need nothing but the sources.
FACTORIES: Mapping[str, Factory] = MappingProxyType({"uring": UringBackend, "pread": PreadBackend})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Candidate ``name`` was refused because of ``reason``, a sentence with its remedy."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The ``backend`` taken, opened and idle (the caller closes it), and what was ``refused`` before it."""

    backend: Backend
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A stretch of a source: ``nbytes`` of the file from ``offset``, read as ``length``, with their BLAKE2b digest."""

    source: int
    offset: int
    length: int
    nbytes: int
    digest: bytes


def probe(candidates: Sequence[str], sources: Sequence[Source], arena: Arena, depth: int = 8, *,
          factories: Mapping[str, Factory] = FACTORIES, known: Sequence[Sample] | None = None) -> Selection:
    """The first of ``candidates`` ('uring', 'pread') that opens and reads right; overwrites the arena.

    ``factories`` make the candidates by their names. ``known`` is what must be found where preadv(2) cannot be asked;
    samples longer than the arena are not read. Raises BackendUnavailable, with every reason, when none does or a name
    is unknown; ReadFailed or ShortRead when preadv(2) itself cannot read the first and last MiB of a source;
    ArenaExhausted when the arena is smaller than one page.
    """
    _check_names(candidates, factories)
    samples = _samples(sources, arena) if known is None else [each for each in known if each.length <= arena.nbytes]
    if known and not samples:
        raise ArenaExhausted(f"an arena of {arena.nbytes} bytes is smaller than what is known of {sources[0].path}")
    refused: list[Refusal] = []
    for name in candidates:
        try:
            backend = factories[name](sources, arena, depth)
            return Selection(_verified(name, backend, sources, arena, samples), tuple(refused))
        except DmaError as error:
            refused.append(Refusal(name, str(error)))
    reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refused)
    raise BackendUnavailable(
        f"none of {', '.join(candidates) or 'no candidates'} works ({reasons})",
        hint="apply one of the remedies above",
    )


def _check_names(candidates: Sequence[str], factories: Mapping[str, Factory]) -> None:
    known = ", ".join(factories)
    for name in candidates:
        if name not in factories:
            raise BackendUnavailable(f"backend {name!r} is not known", hint=f"name one of: {known}")


def _verified(
    name: str, backend: Backend, sources: Sequence[Source], arena: Arena, samples: Sequence[Sample]
) -> Backend:
    """The backend, opened, after it has read every sample right."""
    with ExitStack() as undo:
        backend.open()
        undo.callback(backend.close)
        for tag, sample in enumerate(samples):
            _fetch(backend, tag << 16, sample)
            with arena.view[: sample.nbytes] as stretch:
                if blake2b(stretch, digest_size=len(sample.digest)).digest() != sample.digest:
                    raise BackendUnavailable(_unequal(name, sources[sample.source], sample))
        undo.pop_all()
    return backend


def _fetch(backend: Backend, tag: int, sample: Sample) -> None:
    """The sample to the arena's begin, in reads as long as the backend takes."""
    whole = Read(tag, sample.source, sample.offset, sample.length, 0)
    for part in split(whole, backend.facts.max_read):
        backend.submit([part])
        backend.wait(PROBE_TIMEOUT_SECONDS)


def _unequal(name: str, source: Source, sample: Sample) -> str:
    return (
        f"{source.path}: {sample.nbytes} bytes at offset {sample.offset} read through {name} differ from the "
        "same bytes read by the kernel"
    )


def _samples(sources: Sequence[Source], arena: Arena) -> list[Sample]:
    """Digests of the first and last stretch of each source, read before any backend touches a descriptor."""
    length = min(MIB, arena.nbytes // mmap.PAGESIZE * mmap.PAGESIZE)
    if not length:
        raise ArenaExhausted(f"an arena of {arena.nbytes} bytes is smaller than one page")
    # A page-aligned buffer: the descriptor may already carry O_DIRECT from whoever opened it.
    with mmap.mmap(-1, length) as buffer:
        return [
            _sample(number, source, offset, buffer)
            for number, source in enumerate(sources)
            if source.size
            for offset in sorted({0, (source.size - 1) // length * length})
        ]


def _sample(number: int, source: Source, offset: int, buffer: mmap.mmap) -> Sample:
    length = len(buffer)
    wanted = min(length, source.size - offset)
    try:
        got = os.preadv(source.fd, [buffer], offset)
    except OSError as error:
        raise ReadFailed(source.path, offset, length, error.errno or 0) from error
    if got < wanted:
        raise ShortRead(source.path, offset, wanted, got)
    with memoryview(buffer)[:wanted] as stretch:
        return Sample(number, offset, length, wanted, blake2b(stretch).digest())
