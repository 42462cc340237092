"""How do a model's bytes get from its GGUF to the parts of a store, and which checksum do they have?"""

from __future__ import annotations

import os
from collections.abc import Sequence

import xxhash

from nvstreamd.weights.packed.durable import COPY, Part, read_into, write
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import Embedding, Segment


def content_of(source: Segment, target: Segment, files: Sequence[OpenFile]) -> memoryview:
    """The bytes of a segment that lies in `files`, as `target` has them in a slot. Raises ModelChanged, OSError."""
    content = memoryview(bytearray(target.nbytes))
    for old, new in zip(source.tensors, target.tensors, strict=True):
        extent = next(e for e in source.extents if e.target <= old.offset < e.target + e.length)
        begin = extent.offset + old.offset - extent.target
        read_into(files[extent.file], begin, content[new.offset : new.offset + new.nbytes])
    return content


def write_segment(segment: Segment, content: memoryview, parts: Sequence[Part]) -> int:
    """Writes a segment to its extents; on the disk when this returns. Its XXH3-64. Raises OSError."""
    for extent in segment.extents:
        part = parts[extent.file]
        write(part.fd, content[extent.target : extent.target + extent.length], part.base + extent.offset)
    for number in {extent.file for extent in segment.extents}:
        os.fdatasync(parts[number].fd)
    return xxhash.xxh3_64_intdigest(content)


def copy_table(table: Embedding, files: Sequence[OpenFile], part: Part, offset: int) -> str:
    """Copies the embedding's table to byte `offset` of a part; its XXH3-64 in hexadecimal. Raises OSError."""
    piece = table.pieces[0]
    total = table.rows * table.type.row_bytes(table.columns)
    digest = xxhash.xxh3_64()
    for done in range(0, total, COPY):
        block = memoryview(bytearray(min(COPY, total - done)))
        read_into(files[piece.file], piece.offset + done, block)
        write(part.fd, block, part.base + offset + done)
        digest.update(block)
    os.fdatasync(part.fd)
    return digest.hexdigest()
