"""What does a GGUF file say about itself? Reads header, metadata and tensor table, never a weight.

The file is hostile: every count and length is held against the bytes that are left and against a limit
before anything is allocated. Source: the GGUF specification, versions 2 and 3 (little endian).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from nvstreamd.errors import BadModelFile
from nvstreamd.ggml import BY_ID, SUPPORTED, GgmlType
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.mistaken import LONGEST_BEGIN, hint_for, mistaken_for

DAMAGED = "the file is damaged or not a GGUF: fetch it again"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 16
MOST_DIMENSIONS = 4
# Vocabularies of 256k tokens take some 10 MB and 1.5 million elements: these leave room, and bound the memory.
MOST_HEADER_BYTES = 1 << 26
MOST_ELEMENTS = 1 << 22
LONGEST_NAME = 1 << 16
LONGEST_STRING = 1 << 24
DEEPEST_ARRAY = 2
LARGEST_ALIGNMENT = 1 << 20
WINDOW = 1 << 20
LONGEST_SHOWN = 200

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table. `shape` is (rows, ..., columns): outermost first, columns contiguous.

    `offset` counts bytes from the start of file number `file`.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """The metadata and tensors of one model, from one file or from all parts of a split one."""

    paths: tuple[str, ...]
    metadata: dict[str, object]
    tensors: dict[str, Tensor]


class _Cursor:
    """Takes bytes off the front of a file through a window, never past its end or the header limit."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.limit = min(file.size, MOST_HEADER_BYTES)
        self.position = 0
        self.elements = MOST_ELEMENTS
        self._window = b""
        self._start = 0

    def left(self) -> int:
        return self.limit - self.position

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; raises BadModelFile naming `what` when they are not there."""
        if count > self.left():
            raise self._too_long(count, what)
        begin = self.position - self._start
        if begin + count > len(self._window):
            self._window = self.file.read(max(count, WINDOW), self.position)
            self._start, begin = self.position, 0
            if len(self._window) < count:
                raise bad(self.file.path, what, "the file ends inside it", "")
        self.position += count
        return self._window[begin : begin + count]

    def _too_long(self, count: int, what: str) -> BadModelFile:
        if self.limit < self.file.size:
            return bad(self.file.path, what, f"ends past the {self.limit >> 20} MiB that a header may take", "")
        return bad(self.file.path, what, f"needs {count} bytes, {self.left()} are left", "")

    def take_elements(self, count: int, what: str) -> None:
        """Counts array elements: all arrays of a file together have at most MOST_ELEMENTS."""
        if count > self.elements:
            raise bad(self.file.path, what, f"has {count} elements, all arrays may have {MOST_ELEMENTS}", "")
        self.elements -= count

    def number(self, kind: int, what: str) -> int | float | bool:
        code = SCALARS[kind]
        value: int | float = code.unpack(self.take(code.size, what))[0]
        return bool(value) if kind == BOOL else value

    def count(self, kind: int, most: int, what: str) -> int:
        """An unsigned number that may be at most `most`."""
        value = int(self.number(kind, what))
        if value > most:
            raise bad(self.file.path, what, f"is {value}, at most {most} are accepted", "")
        return value

    def string(self, what: str, longest: int = LONGEST_STRING) -> str:
        raw = self.take(self.count(10, longest, f"{what}: length"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise bad(self.file.path, what, f"is not UTF-8 at byte {error.start}", "") from None


def bad(path: str, field: str, problem: str, hint: str) -> BadModelFile:
    """The error for one field of one file. Both come from the file: cut to what a gRPC status can carry."""
    field = field[:LONGEST_SHOWN]
    return BadModelFile(f"{path}: {field} {problem[: 2 * LONGEST_SHOWN]}", hint or DAMAGED, field=field)


def shown(value: object) -> str:
    """A metadata value in a message, however large it is."""
    return f"an array of {len(value)}" if isinstance(value, list) else repr(value)[:LONGEST_SHOWN]


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> object:
    if kind == STRING:
        return cursor.string(key)
    if kind == ARRAY:
        return _array(cursor, key, depth + 1)
    if kind in SCALARS:
        return cursor.number(kind, key)
    raise bad(cursor.file.path, key, f"has value type {kind}, which GGUF does not define", "")


def _array(cursor: _Cursor, key: str, depth: int) -> list[object]:
    if depth > DEEPEST_ARRAY:
        raise bad(cursor.file.path, key, f"nests arrays deeper than {DEEPEST_ARRAY}", "")
    kind = cursor.count(4, 12, f"{key}: element type")
    length = cursor.count(10, 1 << 64, f"{key}: array length")
    cursor.take_elements(length, key)
    if kind in SCALARS:
        code = SCALARS[kind]
        raw = cursor.take(length * code.size, key)
        values = struct.unpack(f"<{length}{code.format[1:]}", raw)
        return [bool(v) for v in values] if kind == BOOL else list(values)
    # A string takes 8 bytes and an inner array 12: lengths that cannot fit are refused before the loop.
    if length * 8 > cursor.left():
        raise bad(cursor.file.path, key, f"claims {length} elements, the file has no room for them", "")
    return [_value(cursor, kind, key, depth) for _ in range(length)]


def _metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for index in range(count):
        key = cursor.string(f"metadata key {index}", LONGEST_NAME)
        if key in metadata:
            raise bad(cursor.file.path, key, "appears twice", "")
        metadata[key] = _value(cursor, cursor.count(4, 12, f"{key}: value type"), key, 0)
    return metadata


def _tensor(cursor: _Cursor, index: int, file: int) -> Tensor:
    """One table entry; `offset` is still relative to the data section."""
    name = cursor.string(f"name of tensor {index}", LONGEST_NAME)
    dimensions = cursor.count(4, MOST_DIMENSIONS, f"tensor {name}: dimensions")
    shape = tuple(cursor.count(10, 1 << 48, f"tensor {name}: shape") for _ in range(dimensions))[::-1]
    kind_id = cursor.count(4, 1 << 31, f"tensor {name}: type")
    kind = BY_ID.get(kind_id)
    if kind is None:
        names = " ".join(known.name for known in SUPPORTED)
        raise bad(cursor.file.path, f"tensor {name}", f"has type {kind_id}", f"requantise it to one of {names}")
    if not shape or min(shape) < 1 or shape[-1] % kind.block_length:
        raise bad(cursor.file.path, f"tensor {name}", f"has shape {shape}, impossible for {kind.name}", "")
    nbytes = prod(shape) // kind.block_length * kind.block_bytes
    return Tensor(name, kind, shape, file, int(cursor.number(10, f"tensor {name}: offset")), nbytes)


def _placed(tensor: Tensor, base: int, alignment: int, file: OpenFile) -> Tensor:
    """The tensor with its offset counted from the start of the file, and inside it."""
    begin = base + tensor.offset
    if tensor.offset % alignment:
        raise bad(file.path, f"tensor {tensor.name}", f"offset {tensor.offset} is not aligned to {alignment}", "")
    if begin + tensor.nbytes > file.size:
        problem = f"ends at byte {begin + tensor.nbytes}, the file has {file.size}"
        raise bad(file.path, f"tensor {tensor.name}", problem, "the file is truncated: fetch it again")
    return Tensor(tensor.name, tensor.type, tensor.shape, tensor.file, begin, tensor.nbytes)


def _refuse_overlaps(tensors: list[Tensor], file: OpenFile) -> None:
    by_offset = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in pairwise(by_offset):
        if before.offset + before.nbytes > after.offset:
            raise bad(file.path, f"tensor {after.name}", f"overlaps tensor {before.name}", "")


def _alignment(metadata: dict[str, object], file: OpenFile) -> int:
    alignment = metadata.get("general.alignment", 32)
    valid = isinstance(alignment, int) and 8 <= alignment <= LARGEST_ALIGNMENT and alignment & (alignment - 1) == 0
    if not valid:
        raise bad(file.path, "general.alignment", f"is {shown(alignment)}, not a power of two from 8 to 2^20", "")
    assert isinstance(alignment, int)
    return alignment


def read_header(file: OpenFile, number: int = 0) -> tuple[dict[str, object], list[Tensor], int]:
    """Metadata, tensors with offsets relative to the data section, and the offset where that section begins.

    Raises BadModelFile naming file, field and remedy.
    """
    cursor = _Cursor(file)
    begin = file.read(min(file.size, LONGEST_BEGIN), 0) if file.size else b""
    if not begin.startswith(MAGIC):
        raise BadModelFile(f"{file.path} {mistaken_for(begin)}: its magic is not 'GGUF'",
                           hint_for(begin) or DAMAGED, field="magic")
    cursor.take(len(MAGIC), "magic")
    version = int(cursor.number(4, "version"))
    if version not in VERSIONS:
        raise bad(file.path, "version", f"is {version}", "versions 2 and 3, little endian, are supported")
    tensor_count = cursor.count(10, MOST_TENSORS, "tensor count")
    metadata = _metadata(cursor, cursor.count(10, MOST_KEYS, "metadata count"))
    tensors = [_tensor(cursor, index, number) for index in range(tensor_count)]
    alignment = _alignment(metadata, file)
    return metadata, tensors, -(-cursor.position // alignment) * alignment


def read_file(file: OpenFile, number: int = 0) -> tuple[dict[str, object], list[Tensor]]:
    """Metadata and tensors of one file; tensors carry `number` as their file. Raises BadModelFile."""
    metadata, tensors, base = read_header(file, number)
    alignment = _alignment(metadata, file)
    placed = [_placed(tensor, base, alignment, file) for tensor in tensors]
    _refuse_overlaps(placed, file)
    return metadata, placed


def read(files: list[OpenFile]) -> Gguf:
    """The whole model from all its files, in order. Raises BadModelFile."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, object] = {}
    for number, file in enumerate(files):
        own, found = read_file(file, number)
        _check_split(own, number, len(files), file)
        metadata = own if number == 0 else metadata
        if len(tensors) + len(found) > MOST_TENSORS:
            raise bad(file.path, "tensor count", f"of all parts is above {MOST_TENSORS}", "")
        for tensor in found:
            if tensor.name in tensors:
                raise bad(file.path, f"tensor {tensor.name}", "appears twice", "")
            tensors[tensor.name] = tensor
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise bad(files[0].path, "split.tensors.count", f"is {shown(expected)}, {len(tensors)} were found",
                  "a part is missing or comes from another model: fetch all parts again")
    return Gguf(tuple(file.path for file in files), metadata, tensors)


def _check_split(metadata: dict[str, object], number: int, parts: int, file: OpenFile) -> None:
    if metadata.get("split.count", 1 if parts == 1 else None) not in (parts, 0 if parts == 1 else parts):
        raise bad(file.path, "split.count", f"is {shown(metadata.get('split.count'))}, {parts} files are given",
                  "keep all parts beside each other under the names gguf-split gave them")
    if metadata.get("split.no", number) != number:
        raise bad(file.path, "split.no", f"is {shown(metadata.get('split.no'))}, expected {number}",
                  "the parts were renamed: give them back their names")
