"""What do tests of the flow share? A model of made-up bytes, over a scripted backend or real files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.backends.pread import PreadBackend
from nvdma.types import Source
from nvstreamd.pieces import Key, Kind
from nvstreamd.weights.flow.flow import Flow
from nvstreamd.weights.flow.mover import Mover
from nvstreamd.weights.flow.plan import Plan, Rates, with_experts
from nvstreamd.weights.flow.pools import Pool
from nvstreamd.weights.packed.files import OpenFile, adopt
from nvstreamd.weights.packed.manifest import ALIGNMENT, Extent, Segment
from support.scripted_backend import Ending, Image, Script, ScriptedBackend

PAGE = ALIGNMENT
BLOCK = 2 * PAGE
PATHS = ("drive0/part-0.bin", "drive1/part-1.bin")
RATES = Rates(1e9, (1e9,))


@dataclass(slots=True)
class Model:
    """Segments of made-up bytes over two files, the last of which ends off the page."""

    segments: list[Segment] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    expected: list[bytes] = field(default_factory=list)

    @property
    def by_key(self) -> dict[Key, int]:
        """Bytes of each segment."""
        return dict(zip(self.keys, self.sizes, strict=True))

    @property
    def sizes(self) -> list[int]:
        """Bytes of each segment in a slot."""
        return [segment.nbytes for segment in self.segments]

    @property
    def keys(self) -> list[Key]:
        """The key of each segment."""
        return [segment.key for segment in self.segments]


def key_of(number: int, experts: int) -> Key:
    """The key of a segment of a model whose layers are each followed by so many experts."""
    layer, part = divmod(number, 1 + experts)
    return Key(Kind.EXPERT, layer, part - 1) if part else Key(Kind.LAYER, layer)


def made(pages: Sequence[int], *, checksums: bool = True, loose: int = 0, experts: int = 0) -> Model:
    """Segments of so many pages, in turns half in one file and half in the other, `loose` bytes missing at the end.

    Behind each layer come so many `experts`.
    """
    model, contents = Model(), [bytearray(), bytearray()]
    for number, count in enumerate(pages):
        body = bytes((number * 7 + place * 3 + 1) % 251 for place in range(16)) * (count * PAGE // 16)
        extents, target = [], 0
        for turn, share in enumerate((count - count // 2, count // 2)):
            file = (number + turn) % 2
            length = share * PAGE
            if length:
                extents.append(Extent(file, len(contents[file]), length, target))
                contents[file] += body[target : target + length]
                target += length
        checksum = xxhash.xxh3_64_intdigest(body) if checksums else None
        model.segments.append(Segment(key_of(number, experts), tuple(extents), (), count * PAGE, checksum))
        model.expected.append(body)
    model.files = [bytes(content[: len(content) - loose]) for content in contents]
    return model


@dataclass(slots=True)
class Rig:
    """A flow that has not started, and what it stands on."""

    flow: Flow
    backend: Backend
    pool: Pool
    arena: Arena
    plan: Plan


@contextmanager
def scripted(model: Model, budget: int, endings: Mapping[int, Ending] | None = None, *, newest_first: bool = False,
             depth: int = 4) -> Iterator[Rig]:
    """Over the scripted backend; its two files exist on disk only as descriptors of nothing."""
    with ExitStack() as stack:
        fd = os.memfd_create("empty")
        stack.callback(os.close, fd)
        files = [OpenFile(fd, path, len(content), os.fstat(fd).st_mtime_ns, 0)
                 for path, content in zip(PATHS, model.files, strict=True)]
        images = {path: Image(len(content), {0: content}) for path, content in zip(PATHS, model.files, strict=True)}
        sources = [Source(fd, file.path, file.size) for file in files]
        arena = stack.enter_context(Arena(budget))
        backend = ScriptedBackend(images, sources, arena, depth, script=Script(endings or {}, newest_first))
        yield rig_of(model, budget, arena, backend, files, stack)


@contextmanager
def on_disk(model: Model, budget: int, directory: Path) -> Iterator[Rig]:
    """Over pread and real files."""
    with ExitStack() as stack:
        files = []
        for path, content in zip(PATHS, model.files, strict=True):
            (directory / Path(path).name).write_bytes(content)
            fd = os.open(directory / Path(path).name, os.O_RDONLY)
            stack.callback(os.close, fd)
            files.append(adopt(fd, str(directory / Path(path).name)))
        arena = stack.enter_context(Arena(budget))
        backend = PreadBackend([Source(file.fd, file.path, file.size) for file in files], arena, 4)
        yield rig_of(model, budget, arena, backend, files, stack)


def rig_of(model: Model, budget: int, arena: Arena, backend: Backend, files: Sequence[OpenFile],
           stack: ExitStack) -> Rig:
    backend.open()
    stack.callback(backend.close)
    pool = Pool(arena)
    pool.open(stack)
    chosen = with_experts(model.by_key, 1, 0, budget, 4 * BLOCK, RATES)
    return Rig(Flow(Mover(backend, files, BLOCK), pool, model.segments, chosen), backend, pool, arena, chosen)


def run_passes(rig: Rig, model: Model, passes: int) -> None:
    """Every segment of every pass, each byte compared."""
    for _ in range(passes):
        for index, expected in enumerate(model.expected):
            with rig.flow.segment(model.keys[index]) as held:
                slot = held.slot
                for extent in model.segments[index].extents:
                    there = min(extent.length, len(model.files[extent.file]) - extent.offset)
                    begin, end = extent.target, extent.target + there
                    assert bytes(slot.view[begin:end]) == expected[begin:end], f"segment {index}"
                assert slot.span.address == rig.arena.address + slot.span.offset
