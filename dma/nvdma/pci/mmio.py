"""How are a device's registers read, written and waited for?

Loads and stores of registers are single and aligned: an item of a memoryview is one instruction of its width. (A value
of ctypes is not: it is loaded before it is stored, and each doorbell would wait for the device's answer.) x86 keeps
their order; elsewhere a mapping of device memory (nGnRE on Arm) does. A write may still be on its way when it returns
(it is posted): reading any register of the device pushes it there.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Protocol

from nvdma.errors import DeadlineExceeded

WAIT_STEP_SECONDS = 0.0005


class Registers(Protocol):
    """A register window; offsets are bytes, aligned to the width that is read or written."""

    def read32(self, offset: int) -> int:
        """The register, all ones when the device is gone."""

    def read64(self, offset: int) -> int:
        """The register, all ones when the device is gone."""

    def write32(self, offset: int, value: int) -> None:
        """A posted write."""

    def write64(self, offset: int, value: int) -> None:
        """A posted write."""


class MappedRegisters:
    """The registers at virtual `address`, `nbytes` of them; whoever mapped them keeps the mapping."""

    def __init__(self, address: int, nbytes: int) -> None:
        window = memoryview((ctypes.c_char * (nbytes & ~7)).from_address(address)).cast("B")
        self._nbytes = window.nbytes
        self._words = window.cast("I")
        self._long_words = window.cast("Q")

    def read32(self, offset: int) -> int:
        """The 4 bytes at `offset`, all ones when the device is gone. Raises ValueError unless aligned and inside."""
        return self._words[self._index(offset, 4)]

    def read64(self, offset: int) -> int:
        """The 8 bytes at `offset`, all ones when the device is gone. Raises ValueError unless aligned and inside."""
        return self._long_words[self._index(offset, 8)]

    def write32(self, offset: int, value: int) -> None:
        """Writes 4 bytes at `offset`, in one posted store. Raises ValueError outside the window, or unaligned."""
        self._words[self._index(offset, 4)] = value

    def write64(self, offset: int, value: int) -> None:
        """Writes 8 bytes at `offset`, in one posted store. Raises ValueError outside the window, or unaligned."""
        self._long_words[self._index(offset, 8)] = value

    def _index(self, offset: int, width: int) -> int:
        if offset % width or not 0 <= offset <= self._nbytes - width:
            raise ValueError(f"register {offset:#x} of {width} bytes is not in a window of {self._nbytes:#x}")
        return offset // width


def wait_until(condition: Callable[[], bool], seconds: float, waited_for: str) -> None:
    """Asks again and again, sleeping between. Raises DeadlineExceeded naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(waited_for, seconds)
        time.sleep(WAIT_STEP_SECONDS)
