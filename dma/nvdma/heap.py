"""How does a process give memory back that it had for a moment? By telling the C library not to keep large pieces.

mallopt(3): left alone, glibc raises the size from which a piece is a mapping of its own to that of the largest piece
ever freed (32 MiB at most), and a process that once held large messages keeps their memory.
"""

from __future__ import annotations

import ctypes

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# asyncio reads into 256 KiB: those are not mapped, and unmapped, for each message.
MAPPED_FROM = 1 << 20
KEPT_AT_THE_TOP = 1 << 20
ARENAS = 2


def give_back_large_pieces() -> bool:
    """Sets the thresholds for this process; False where the C library has none of them."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = ((M_MMAP_THRESHOLD, MAPPED_FROM), (M_TRIM_THRESHOLD, KEPT_AT_THE_TOP), (M_ARENA_MAX, ARENAS))
    return all([set_option(option, value) == 1 for option, value in options])


def trim() -> None:
    """Gives free pages inside the heap back to the kernel, where the C library can: malloc_trim(3)."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(ctypes.c_size_t(0))
