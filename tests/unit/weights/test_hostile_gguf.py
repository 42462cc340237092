"""What becomes of a GGUF that is damaged or made to hurt? One error that names file, field and remedy; no more memory.

Files here are headers written by hand: what no converter writes, a stranger does.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile
from nvstreamd.weights.packed.gguf import MOST_ELEMENTS, MOST_HEADER_BYTES
from unit.weights.models import ARRAY, BOOL, F32, STRING, U32, U64, Entry, array, gguf, make, refusal, string

HUGE = 1 << 60
# Beside the window of one MiB and what the interpreter caches.
MOST_MEMORY = 8 << 20
ARCH = {"general.architecture": "llama"}


def pairs(key: str | bytes, value: bytes) -> bytes:
    return gguf([("general.architecture", "llama"), (key, value)])


def entries(*table: Entry, data: int = 4096, **metadata: object) -> bytes:
    return gguf({**ARCH, **metadata}, table, data=data)


HOSTILE = {
    "nothing at all": (b"", "magic"),
    "no magic": (b"GGML" + bytes(100), "magic"),
    "version 1": (gguf(version=1), "version"),
    "big endian": (gguf(version=3 << 24), "version"),
    "2^60 tensors": (gguf(ARCH, counts=(HUGE, 1)), "tensor count"),
    "2^60 keys": (gguf(ARCH, counts=(0, HUGE)), "metadata count"),
    "as many tensors as are accepted, none there": (gguf(ARCH, counts=(1 << 16, 1)), "tensor "),
    "2^60 numbers": (pairs("evil", array(U32, HUGE)), "evil"),
    "2^60 strings": (pairs("evil", array(STRING, HUGE)), "evil"),
    "2^60 arrays": (pairs("evil", array(ARRAY, HUGE)), "evil"),
    "a string of 2^60 bytes": (pairs("evil", struct.pack("<IQ", STRING, HUGE)), "evil"),
    "a key of 2^60 bytes": (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, HUGE), "metadata key 0"),
    "arrays in arrays in arrays": (pairs("evil", array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1))[4:] * 2)), "evil"),
    "a thousand arrays deep": (pairs("evil", struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 1000), "evil"),
    "an unknown value type": (pairs("evil", struct.pack("<I", 13)), "evil"),
    "an unknown element type": (pairs("evil", array(13, 1, bytes(64))), "evil"),
    "a value that is not UTF-8": (pairs("evil", struct.pack("<I", STRING) + string(b"\xff\xfe")), "evil"),
    "a surrogate in a value": (pairs("evil", struct.pack("<I", STRING) + string(b"\xed\xa0\x80")), "evil"),
    "a key that is not UTF-8": (pairs(b"\xff", struct.pack("<IB", BOOL, 1)), "metadata key 1"),
    "a key twice": (gguf([("evil", 1), ("evil", 2)]), "evil"),
    "an alignment of 0": (gguf({"general.alignment": 0}), "general.alignment"),
    "an alignment of 24": (gguf({"general.alignment": 24}), "general.alignment"),
    "an alignment of 2^31": (gguf({"general.alignment": 1 << 31}), "general.alignment"),
    "an alignment in words": (gguf({"general.alignment": "x" * 100_000}), "general.alignment"),
    "an alignment of many": (gguf({"general.alignment": [1] * 10_000}), "general.alignment"),
    "no dimension": (entries(Entry("evil", ())), "evil"),
    "five dimensions": (entries(Entry("evil", (1, 1, 1, 1, 1))), "evil"),
    "a dimension of 0": (entries(Entry("evil", (32, 0))), "evil"),
    "a dimension of 2^60": (entries(Entry("evil", (HUGE,))), "evil"),
    "dimensions that overflow 64 bits": (entries(Entry("evil", (1 << 48,) * 4)), "evil"),
    "half a block": (entries(Entry("evil", (33,), type=2)), "evil"),
    "a type that is no more": (entries(Entry("evil", (32,), type=4)), "evil"),
    "a type of the future": (entries(Entry("evil", (32,), type=1 << 31)), "evil"),
    "an offset off the alignment": (entries(Entry("evil", (8,), offset=8)), "evil"),
    "an offset past the end": (entries(Entry("evil", (8,), offset=1 << 20)), "evil"),
    "an offset of 2^63": (entries(Entry("evil", (8,), offset=1 << 63)), "evil"),
    "the last byte past the end": (entries(Entry("evil", (1032,))), "evil"),
    "tensors that overlap": (entries(Entry("good", (64,)), Entry("evil", (64,), offset=128)), "evil"),
    "tensors in one place": (entries(Entry("evil", (8,)), Entry("evil too", (8,))), "evil"),
    "a tensor twice": (entries(Entry("evil", (8,)), Entry("evil", (8,), offset=32)), "evil"),
    "a tensor that is not UTF-8": (entries(Entry(b"\xff", (8,))), "tensor 0"),
    "a tensor's name of 100 kB": (entries(Entry("x" * 100_000, (8,))), "tensor 0"),
    "a name too long for a status": (entries(Entry("x" * 60_000, (0,))), "xxx"),
    "a key too long for a status": (pairs("x" * 60_000, struct.pack("<I", 13)), "xxx"),
    "another number of tensors than promised": (gguf({**ARCH, "split.tensors.count": 3}), "split.tensors.count"),
    "no architecture": (gguf(), "general.architecture"),
    "an architecture that is a number": (gguf({"general.architecture": 7}), "general.architecture"),
    "an architecture too long for a status": (gguf({"general.architecture": "x" * 100_000}), "general.architecture"),
    "an array of architectures": (gguf({"general.architecture": ["llama"] * 10_000}), "general.architecture"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_by_the_field_that_is_wrong(tmp_path: Path, what: str) -> None:
    content, field = HOSTILE[what]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        refusal(path, BadModelFile, field)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path: Path) -> None:
    metadata = {**ARCH, "a": 1, "b": "text", "c": [1, 2], "d": ["x", "y"], "e": 0.5, "f": True}
    whole = entries(Entry("one", (8,)), Entry("two", (4, 2), offset=32), data=64, **metadata)
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path, BadModelFile)


def test_a_model_cut_by_one_byte_says_that_it_is_truncated(tmp_path: Path) -> None:
    path = make(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:-1])
    assert "truncated" in refusal(path, BadModelFile, "output.weight").hint


LIMITED = """
import resource, sys
from pathlib import Path
from nvstreamd.errors import BadModelFile
from unit.weights.models import look
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
try:
    look(Path(sys.argv[1]))
except BadModelFile as error:
    print(error)
"""


@pytest.mark.parametrize(("kind", "count"), [(BOOL, MOST_ELEMENTS + 1), (F32, 1 << 37), (STRING, 1 << 37),
                                             (ARRAY, 1 << 37), (U64, MOST_ELEMENTS),
                                             pytest.param(STRING, MOST_ELEMENTS, marks=pytest.mark.slow)])
def test_a_sparse_file_cannot_claim_memory_with_elements_that_are_there(tmp_path: Path, kind: int, count: int) -> None:
    """A hole costs its maker nothing: its zeros are numbers, empty strings and empty arrays as far as one likes."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(gguf([("general.architecture", "llama")], counts=(0, 2)).rstrip(b"\0")
                     + string("evil") + array(kind, count))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": "tests"})
    assert ("evil" in done.stdout) == (count > MOST_ELEMENTS) and str(path) in done.stdout


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless.gguf"
    text = string("k" * 60_000)
    pair = struct.pack("<IQ", STRING, 1 << 23)
    with path.open("wb") as out:
        out.write(gguf(ARCH, counts=(0, 60)).rstrip(b"\0"))
        for number in range(60):
            out.write(string(f"evil{number}") + pair)
            out.seek(1 << 23, 1)
        out.write(text)
    refusal(path, BadModelFile, "evil", f"{MOST_HEADER_BYTES >> 20} MiB")


def test_arrays_within_arrays_count_together(tmp_path: Path) -> None:
    inner = struct.pack("<IQ", BOOL, 1 << 20) + bytes(1 << 20)
    path = tmp_path / "nested.gguf"
    path.write_bytes(pairs("evil", array(ARRAY, 5, inner * 5)))
    refusal(path, BadModelFile, "evil", "elements")
