"""Where do the bytes that were read lie?

In an arena: one anonymous private mapping (mmap(2)), resident from `open` on, at a fixed address, given
back by `close`. A backend may pin it; slots of the layers above are slices of its view.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from nvdma.errors import ArenaBusy, ArenaExhausted

# linux/mman.h, since Linux 5.14; the mmap module of Python 3.11 does not name it.
MADV_POPULATE_WRITE = 23
# An IOMMU translates one with one entry, and a processor too.
HUGE_PAGE = 2 << 20
REMEDY = "set /sys/kernel/mm/transparent_hugepage/enabled to madvise"


class Arena:
    """``nbytes`` bytes of memory whose address is a multiple of ``alignment`` (a power of two).

    ``huge_pages`` asks for transparent huge pages (madvise(2), MADV_HUGEPAGE), and for an alignment that lets them
    begin with the first byte. After `open`: ``view`` is a writable memoryview of unsigned bytes, shape (nbytes,);
    ``address`` is an integer; ``notes`` say what of huge pages was given, if asked for. The mapping is not inherited
    by fork(2): a child must not touch it.
    """

    def __init__(self, nbytes: int, alignment: int = 4096, *, huge_pages: bool = False) -> None:
        if nbytes <= 0:
            raise ValueError(f"nbytes is {nbytes}: an arena has at least one byte")
        if alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"alignment is {alignment}: it must be a power of two")
        self.nbytes = nbytes
        self.alignment = max(alignment, HUGE_PAGE) if huge_pages and nbytes >= HUGE_PAGE else alignment
        self.notes: tuple[str, ...] = ()
        self._huge_pages = huge_pages
        self._map: mmap.mmap | None = None
        self._view: memoryview | None = None
        self._address = 0

    @property
    def view(self) -> memoryview:
        """The bytes: writable, one-dimensional, format 'B'. Raises RuntimeError unless open."""
        if self._view is None:
            raise RuntimeError("the arena is not open: call open() first")
        return self._view

    @property
    def address(self) -> int:
        """The virtual address of the first byte. Raises RuntimeError unless open."""
        if self._view is None:
            raise RuntimeError("the arena is not open: call open() first")
        return self._address

    def open(self) -> None:
        """Map the memory and make every page resident. Raises ArenaExhausted when there is not enough."""
        if self._map is not None:
            raise RuntimeError("the arena is open already")
        padding = max(0, self.alignment - mmap.PAGESIZE)
        try:
            mapping = mmap.mmap(-1, self.nbytes + padding, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with ExitStack() as undo:
                undo.callback(mapping.close)
                start = _address_of(mapping)
                skip = -start % self.alignment
                refusal = self._advise(mapping, skip)
                _populate(mapping, skip, self.nbytes)
                undo.pop_all()
        except (OSError, OverflowError) as error:
            raise ArenaExhausted(f"mapping an arena of {self.nbytes} bytes failed: {error}") from error
        self._map = mapping
        self._address = start + skip
        self._view = memoryview(mapping)[skip : skip + self.nbytes]
        if self._huge_pages:
            self.notes = (refusal or self._huge_pages_given(),)

    def close(self) -> None:
        """Unmap the memory. Calling it again does nothing.

        Raises ArenaBusy while a memoryview or an array over its bytes exists; the arena then stays open.
        """
        if self._map is None or self._view is None:
            return
        skip = self._address - _address_of(self._map)
        try:
            self._view.release()
            self._map.close()
        except BufferError as error:
            self._view = memoryview(self._map)[skip : skip + self.nbytes]
            raise ArenaBusy(f"the arena of {self.nbytes} bytes is still in use: {error}") from error
        self._map = self._view = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advise(self, mapping: mmap.mmap, begin: int) -> str:
        """Returns why there are no huge pages, if they were refused."""
        # open(2): direct I/O into a private mapping and fork(2) do not go together without MADV_DONTFORK.
        mapping.madvise(mmap.MADV_DONTFORK)
        whole = self.nbytes // HUGE_PAGE * HUGE_PAGE
        if not self._huge_pages or not whole:
            return ""
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE, begin, whole)
            # One for the rest would reach past it: more memory than the arena is said to take.
            if whole < self.nbytes:
                mapping.madvise(mmap.MADV_NOHUGEPAGE, begin + whole, self.nbytes - whole)
        except OSError as error:
            return f"huge pages are not in use: {error.strerror}; {REMEDY}"
        return ""

    def _huge_pages_given(self) -> str:
        given = min(huge_bytes(self._address), self.nbytes)
        words = f"{given >> 20} of the arena's {self.nbytes >> 20} MiB are in huge pages"
        return words if given or self.nbytes < HUGE_PAGE else f"{words}: memory is in pieces, or {REMEDY}"


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping that holds ``address`` (proc_pid_smaps(5)); 0 when that cannot be read."""
    inside = False
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
            for line in lines:
                head = line.split(" ", 1)[0]
                if "-" in head:
                    start, end = (int(part, 16) for part in head.split("-"))
                    inside = start <= address < end
                elif inside and head == "AnonHugePages:":
                    return int(line.split()[1]) << 10
    except OSError:
        return 0
    return 0


def _populate(mapping: mmap.mmap, begin: int, nbytes: int) -> None:
    """Make the pages of ``nbytes`` from ``begin`` on resident and writable. Raises OSError when memory is short."""
    begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        mapping.madvise(MADV_POPULATE_WRITE, begin, nbytes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Linux before 5.14: writing one byte of each page faults it in.
        for offset in range(begin, begin + nbytes, mmap.PAGESIZE):
            mapping[offset] = 0


def _address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
