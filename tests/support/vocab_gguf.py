"""How does a test get a GGUF file that holds only a vocabulary? Key-value pairs, no tensors.

Written by hand rather than with the `gguf` package because the tests write some seventy files that differ in
one string: the encoded token and merge arrays are built once and shared.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from gguf.constants import GGUF_MAGIC, GGUFValueType

from nvstreamd.weights.packed.files import open_all
from nvstreamd.weights.packed.gguf import read_header


def encode_string(text: str) -> bytes:
    """A GGUF string: eight bytes of length, then UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _array(values: list[object]) -> bytes:
    if values and isinstance(values[0], str):
        kind, body = GGUFValueType.STRING, b"".join(encode_string(str(v)) for v in values)
    elif values and isinstance(values[0], float):
        kind, body = GGUFValueType.FLOAT32, struct.pack(f"<{len(values)}f", *values)
    else:
        kind, body = GGUFValueType.INT32, struct.pack(f"<{len(values)}i", *values)
    return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(values)) + body


def encode_value(value: object) -> bytes:
    """A GGUF value with its type tag: bool, int (as uint32), float, str, list or already encoded bytes."""
    match value:
        case bytes():
            return value
        case bool():
            return struct.pack("<IB", GGUFValueType.BOOL, value)
        case int():
            return struct.pack("<II", GGUFValueType.UINT32, value)
        case float():
            return struct.pack("<If", GGUFValueType.FLOAT32, value)
        case str():
            return struct.pack("<I", GGUFValueType.STRING) + encode_string(value)
        case list():
            return _array(value)
    raise TypeError(type(value))


def write_vocab(path: Path, metadata: Mapping[str, object]) -> Path:
    """A GGUF v3 file of these pairs and no tensors."""
    pairs = {"general.architecture": "llama", **metadata}
    head = struct.pack("<IIQQ", GGUF_MAGIC, 3, 0, len(pairs))
    path.write_bytes(head + b"".join(encode_string(key) + encode_value(value) for key, value in pairs.items()))
    return path


def read_metadata(
    path: str | Path, prefixes: tuple[str, ...] = ("tokenizer.", "general.")
) -> dict[str, object]:
    """The metadata of a GGUF file under these prefixes, as plain Python values."""
    with ExitStack() as stack:
        metadata, _, _ = read_header(open_all([Path(path)], stack)[0])
    return {key: value for key, value in metadata.items() if key.startswith(prefixes)}
