"""Is a file that is no GGUF called what it is, with what to do about it?"""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile
from unit.weights.models import model_at

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4661211808\n"


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    return path.read_bytes()


@pytest.mark.parametrize(("content", "what", "remedy"), [
    (POINTER, "Git LFS pointer", "git lfs pull"),
    (b"<!DOCTYPE html>\n<html>", "web page", "link"),
    (b"\n <HTML><body>Sign in", "web page", "link"),
    (gzip.compress(b"GGUF", mtime=0), "gzip", "unpack"),
    (None, "zip", "unpack"),
    (b"\x40\0\0\0\0\0\0\0" + b'{"__metadata__":{}}', "safetensors", "convert"),
    (pickle.dumps([1], protocol=2), "pickle", "convert"),
    (b'{"error":"Repository not found"}', "JSON", "link"),
    (b"", "empty", "fetch"),
    (bytes(4096), "zeros", "fetch"),
    (b"\x7fELF" + bytes(100), "does not begin as a GGUF", "fetch"),
])
def test_it_is_called_what_it_is(tmp_path: Path, content: bytes | None, what: str, remedy: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(zipped(tmp_path / "z") if content is None else content)
    with pytest.raises(BadModelFile) as error, model_at(path):
        pass
    assert what in error.value.message and remedy in error.value.hint and str(path) in error.value.message
    assert error.value.field == "magic"
