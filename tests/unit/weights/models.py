"""Which small models do the tests of the weights share, and how is a hostile one written byte by byte?"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvstreamd.engine.describe import ModelFile, facts, read_model
from nvstreamd.engine.reports import Facts
from nvstreamd.errors import NotFound, NvstreamError
from nvstreamd.weights.packed.drive_files import Drives, open_files
from nvstreamd.weights.packed.files import OpenFile, parts_of
from nvstreamd.weights.packed.manifest import DriveHome
from nvstreamd.weights.packed.store import SUFFIX, files_of
from support.random_gguf import Options, write
from support.shapes import Shape, tiny
from support.vocab_gguf import encode_value

U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 4, 5, 6, 7, 8, 9, 10, 12


def string(text: str | bytes) -> bytes:
    """A GGUF string."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    """A GGUF value of array type; `count` need not be true."""
    return struct.pack("<IIQ", ARRAY, kind, count) + body


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a tensor table as the file has it: `dims` innermost first, `offset` in the data section."""

    name: str | bytes
    dims: Sequence[int]
    type: int = 0
    offset: int = 0

    def packed(self) -> bytes:
        """Its bytes."""
        return string(self.name) + struct.pack(f"<I{len(self.dims)}QIQ", len(self.dims), *self.dims, self.type,
                                               self.offset)


def gguf(metadata: Mapping[str, object] | Sequence[tuple[str | bytes, object]] = (), entries: Sequence[Entry] = (),
         *, data: int = 0, version: int = 3, counts: tuple[int, int] | None = None) -> bytes:
    """A GGUF of these pairs and entries, `data` zero bytes of weights behind it; `counts` may lie."""
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    tensors, keys = counts or (len(entries), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    head += b"".join(string(key) + encode_value(value) for key, value in pairs)
    head += b"".join(entry.packed() for entry in entries)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(data)


class NoDrives:
    """A machine without any."""

    def open_block(self, serial: str, nsid: int, *, write: bool, stack: ExitStack) -> OpenFile:
        """See Drives."""
        raise NotFound(f"no drive {serial}", "build one in")


def paths_of(path: Path) -> Sequence[Path | DriveHome]:
    """All files of the model at `path`."""
    return files_of(path) if path.suffix == SUFFIX else parts_of(path)


@contextmanager
def opened(path: Path, drives: Drives | None = None) -> Iterator[list[OpenFile]]:
    """All files of the model at `path`, open."""
    with ExitStack() as stack:
        yield open_files(paths_of(path), drives or NoDrives(), stack)


@contextmanager
def model_at(path: Path, drives: Drives | None = None) -> Iterator[ModelFile]:
    """The model at `path`, its files open."""
    with opened(path, drives) as files:
        yield read_model(files)


def look(path: Path, drives: Drives | None = None) -> Facts:
    """What a user asks first: which model is that? Raises what the daemon would report."""
    with model_at(path, drives) as model:
        return facts(model)


def make(path: Path, shape: Shape | None = None, **options: object) -> Path:
    """A small random model; returns its first file."""
    return write(path, shape or tiny(), Options(**options))[0]  # type: ignore[arg-type]


def refusal(path: Path, kind: type[NvstreamError], *words: str, look: Callable[[Path], object] = look) -> NvstreamError:
    """What the user reads when the model at `path` is looked at: names the file, says each word, has a remedy."""
    with pytest.raises(NvstreamError) as refused:
        look(path)
    error = refused.value
    assert type(error) is kind, repr(error)
    assert error.hint and len(str(error)) < 2000
    str(error).encode()
    for word in (path.name, *words):
        assert word in str(error), f"{word!r} is not in {error}"
    return error
