"""Which facts do a caller and a backend exchange?

All offsets and lengths are bytes. Sources are named by their index in the sequence a backend was made
with, targets by their offset in the arena: no pointer and no descriptor travels with a read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# The backend that drives queues of our own into memory of the host: who takes a drive must know when it is wanted.
NVME_HOST = "nvme_host"
# What has to be said of a drive that is used all the same.
UNTRANSLATED = ("no IOMMU is before it (unsafe_noiommu): whoever drives it can read and write all of this machine's "
                "memory")


@dataclass(frozen=True, slots=True)
class Source:
    """An open file: ``fd`` opened O_RDONLY (the caller's), ``path`` for messages, ``size`` in bytes."""

    fd: int
    path: str
    size: int


# Two of these are made for each command of a drive: a tuple takes 0.3 us, a frozen dataclass 0.9 us.
class Read(NamedTuple):
    """``length`` bytes at ``offset`` of source number ``source`` go to byte ``target`` of the arena.

    ``tag`` (0 <= tag < 2**64) names the read in its completion and is unique among the reads in flight. The
    end may lie past the end of the file (an aligned tail); what lies between the file's end and the read's
    end is unspecified afterwards.
    """

    tag: int
    source: int
    offset: int
    length: int
    target: int


class Completion(NamedTuple):
    """Read ``tag`` is done: ``nbytes`` bytes of the file are in the arena (fewer than asked at its end)."""

    tag: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """The facts of a backend: what it is and wants.

    ``depth`` is the largest number of reads in flight, ``max_read`` the longest read in bytes; offset,
    length and target of a read are multiples of ``alignment`` bytes. ``registered_buffers``: the kernel has
    pinned the arena once. ``direct``: reads bypass the page cache. ``notes`` say why something preferable is
    not in use, each with its remedy.
    """

    name: str
    depth: int
    max_read: int
    alignment: int
    registered_buffers: bool
    direct: bool
    notes: tuple[str, ...] = ()


def split(read: Read, max_read: int) -> tuple[Read, ...]:
    """``read`` as consecutive reads of at most ``max_read`` bytes, tagged read.tag, read.tag + 1, ...

    Parts keep the alignment of ``read`` when ``max_read`` is a multiple of it. Raises ValueError when
    ``max_read`` is not positive.
    """
    if max_read <= 0:
        raise ValueError(f"max_read is {max_read}: it must be a positive number of bytes")
    return tuple(
        Read(
            tag=read.tag + part,
            source=read.source,
            offset=read.offset + done,
            length=min(max_read, read.length - done),
            target=read.target + done,
        )
        for part, done in enumerate(range(0, read.length, max_read))
    )
