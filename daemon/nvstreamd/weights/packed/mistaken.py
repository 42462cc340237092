"""What is a file that was taken for a GGUF, and what should its owner do?"""

from __future__ import annotations

LONGEST_BEGIN = 512
PAGE = "is a web page, not a GGUF"
FETCH = "the download got a page in place of the file: use the link to the file itself, log in where that is needed"
CONVERT = "convert it: llama.cpp's convert_hf_to_gguf.py makes a GGUF of such a model's directory"
UNPACK = "unpack it first"

# How it begins, what it is, what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for", "fetch that: git lfs pull"),
    (b"\x1f\x8b", "is compressed with gzip", UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", UNPACK),
    (b"\xfd7zXZ\x00", "is compressed with xz", UNPACK),
    (b"BZh", "is compressed with bzip2", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", UNPACK),
    (b"PK\x03\x04", "is a zip archive, or PyTorch's weights in one", f"{UNPACK}, or {CONVERT}"),
    (b"\x80\x02", "is a pickle of PyTorch", CONVERT),
    (b"\x80\x03", "is a pickle of PyTorch", CONVERT),
    (b"\x80\x04", "is a pickle of PyTorch", CONVERT),
    (b"\x89HDF", "is an HDF5 file", CONVERT),
    (b"lmgg", "is a model in GGML's format of before GGUF", CONVERT),
    (b"tjgg", "is a model in GGML's format of before GGUF", CONVERT),
    (b"fmgg", "is a model in GGML's format of before GGUF", CONVERT),
)


def _kind(begin: bytes) -> tuple[str, str]:
    for magic, what, remedy in _KINDS:
        if begin.startswith(magic):
            return what, remedy
    if not begin:
        return "is empty", "fetch it again, and look whether the disk is full"
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return PAGE, FETCH
    # Safetensors: the length of a header in JSON, then that.
    if begin[8:10] == b'{"' and int.from_bytes(begin[:8], "little") < 1 << 40:
        return "is a file of safetensors", CONVERT
    if begin.lstrip()[:1] in (b"{", b"["):
        return "is JSON, not a GGUF", FETCH
    if not begin.strip(b"\0"):
        return "begins with zeros", "its download has not finished, or it has holes: fetch it again"
    return "does not begin as a GGUF does", ""


def mistaken_for(begin: bytes) -> str:
    """The kind of the file, told from its first `LONGEST_BEGIN` bytes, as the end of a sentence that it begins."""
    return _kind(begin)[0]


def hint_for(begin: bytes) -> str:
    """The remedy; empty when nobody knows what the file is."""
    return _kind(begin)[1]
