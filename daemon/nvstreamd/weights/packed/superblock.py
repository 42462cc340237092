"""How does a drive say that it is one of ours? In a block of 4096 bytes, and a directory of what lies where.

Little-endian; everything not listed is zero. The checksum is XXH3-64 of the 4088 bytes before it.

| byte | what |
|---|---|
| 0 | magic, 8 bytes: "NVSTREAM" |
| 8 | version, 4 bytes: 1 |
| 16 | generation, 8 bytes: grows with every change, from 1 on |
| 24 | UUID of the volume, 16 bytes as RFC 9562 writes them |
| 40 | serial number of the drive, 20 bytes of ASCII, filled up with zeros |
| 64 | capacity of the drive in bytes, 8 bytes |
| 72 | where the directory is, how many bytes it has, their XXH3-64: 8 bytes each |
| 4088 | checksum, 8 bytes |

The directory is JSON. Both are hostile: a drive may have been anywhere.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated
from uuid import UUID

import xxhash
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from nvstreamd.errors import BadVolume
from nvstreamd.names import ModelName
from nvstreamd.weights.packed.manifest import ALIGNMENT

BLOCK = 4096
MAGIC = b"NVSTREAM"
VERSION = 1
FIELDS = struct.Struct("<8sI4xQ16s20s4xQQQQ")
CHECKSUM = struct.Struct("<Q")
AREA = 1 << 20
DATA_BEGIN = 4 << 20
MOST_MODELS = 1024
SERIAL_BYTES = 20
LARGEST_GENERATION = 1 << 62
Offset = Annotated[int, Field(ge=DATA_BEGIN, lt=1 << 62, multiple_of=ALIGNMENT)]
Length = Annotated[int, Field(ge=0, lt=1 << 62, multiple_of=ALIGNMENT)]
Identifier = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


@dataclass(frozen=True, slots=True)
class Superblock:
    """A superblock as the table above has it; `uuid` is 32 hexadecimal digits."""

    generation: int
    uuid: str
    serial: str
    capacity: int
    directory_offset: int = 0
    directory_length: int = 0
    directory_checksum: int = 0

    def packed(self) -> bytes:
        """Its block."""
        fields = FIELDS.pack(MAGIC, VERSION, self.generation, UUID(self.uuid).bytes, plain(self.serial).encode(),
                             self.capacity, self.directory_offset, self.directory_length, self.directory_checksum)
        body = fields.ljust(BLOCK - CHECKSUM.size, b"\0")
        return body + CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stretch(_Stored):
    """`length` bytes of the drive from byte `offset` on."""

    offset: Offset
    length: Length

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


class Entry(_Stored):
    """A model's share of the drive: a part, and copies of header.gguf and manifest.json, filled up to whole blocks.

    `model` names the import. While it is `unfinished` nothing but the place is vouched for.
    """

    name: ModelName
    model: Identifier
    unfinished: bool
    part: Stretch
    header: Stretch
    manifest: Stretch

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """All that it takes."""
        return (self.part, self.header, self.manifest)


class Directory(_Stored):
    """The models that lie on a drive."""

    models: Annotated[tuple[Entry, ...], FailFast(), Field(max_length=MOST_MODELS)]


def parse_superblock(path: str, block: bytes, number: int) -> Superblock | None:
    """The superblock in these 4096 bytes, the drive's first or second; None when they hold none that is whole.

    Raises BadVolume for one of another version: it is whole, but who knows what it says.
    """
    if len(block) != BLOCK or not block.startswith(MAGIC):
        return None
    if xxhash.xxh3_64_intdigest(block[: -CHECKSUM.size]) != CHECKSUM.unpack(block[-CHECKSUM.size :])[0]:
        return None
    _, version, generation, uuid, serial, capacity, *directory = FIELDS.unpack_from(block)
    if version != VERSION:
        raise BadVolume(f"{path}: carries a volume of version {version}, this nvstreamd reads version {VERSION}",
                        "use the nvstreamd that wrote it, or another drive")
    if generation % 2 != number or generation > LARGEST_GENERATION:
        return None
    name = serial.rstrip(b"\0").decode("ascii", errors="replace")
    return Superblock(generation, UUID(bytes=uuid).hex, plain(name), capacity, *directory)


def plain(serial: str) -> str:
    """A serial number as a superblock can hold it: ASCII (NVMe Base Specification, Identify Controller, SN)."""
    return serial.encode("ascii", errors="replace").decode()[:SERIAL_BYTES]


def parse_directory(raw: bytes, superblock: Superblock) -> tuple[Entry, ...]:
    """The models of a directory. Raises ValueError saying what is wrong with it."""
    if xxhash.xxh3_64_intdigest(raw) != superblock.directory_checksum:
        raise ValueError("the directory is damaged")
    try:
        models = Directory.model_validate(json.loads(raw)).models
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200].encode(errors="backslashreplace").decode()
        raise ValueError(f"directory: {place}: {first['msg']}") from None
    except RecursionError:
        raise ValueError("the directory is nested without end") from None
    if len({entry.model for entry in models}) != len(models):
        raise ValueError("two models of the directory have one identifier")
    busy = sorted((s.offset, s.end) for entry in models for s in entry.stretches if s.length)
    if any(end > superblock.capacity for _, end in busy) or any(a[1] > b[0] for a, b in pairwise(busy)):
        raise ValueError("stretches of the directory overlap, or lie outside of the drive")
    return models
