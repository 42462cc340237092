"""Is an arena's memory aligned, there before the first read, and given back when nobody uses it?"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from nvdma.arena import Arena, huge_bytes
from nvdma.errors import ArenaBusy, ArenaExhausted

MIB = 1 << 20


def mapped(address: int) -> bool:
    """Whether this process has a mapping that covers ``address``."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = ([int(end, 16) for end in line.split(" ")[0].split("-")] for line in lines)
    return any(start <= address < end for start, end in ranges)


@pytest.mark.parametrize("alignment", [1, 512, 4096, 64 << 10, 2 << 20])
@pytest.mark.parametrize("nbytes", [1, 4097, 3 * MIB])
def test_the_view_has_the_size_and_the_alignment_asked_for(nbytes: int, alignment: int) -> None:
    with Arena(nbytes, alignment) as arena:
        assert arena.address % alignment == 0
        assert (arena.view.nbytes, arena.view.format, arena.view.readonly) == (nbytes, "B", False)
        arena.view[:] = b"\xff" * nbytes
        assert bytes(arena.view[-1:]) == b"\xff"


def test_the_address_is_that_of_the_view() -> None:
    with Arena(MIB, 2 << 20) as arena:
        arena.view[5] = 42
        fd = os.open("/proc/self/mem", os.O_RDONLY)
        try:
            assert os.pread(fd, 1, arena.address + 5) == b"\x2a"
        finally:
            os.close(fd)


def test_every_page_is_resident_after_open() -> None:
    # A page fault in the middle of a pass would cost time where nobody counts it.
    with Arena(64 * mmap.PAGESIZE) as arena:
        entry = 8
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            data = os.pread(pagemap.fileno(), 64 * entry, arena.address // mmap.PAGESIZE * entry)
        present = [int.from_bytes(data[at : at + entry], "little") >> 63 for at in range(0, len(data), entry)]
        assert present == [1] * 64


def test_close_gives_the_memory_back_and_may_be_repeated() -> None:
    arena = Arena(MIB)
    arena.open()
    address = arena.address
    assert mapped(address)
    arena.close()
    arena.close()
    assert not mapped(address)
    with pytest.raises(RuntimeError, match="not open"):
        _ = arena.view


def test_an_arena_in_use_refuses_to_close_and_stays_usable() -> None:
    arena = Arena(MIB)
    arena.open()
    slot = arena.view[100:200]
    with pytest.raises(ArenaBusy, match="release every memoryview"):
        arena.close()
    slot[0] = 9
    assert arena.view[100] == 9
    slot.release()
    arena.close()


def test_an_exported_view_refuses_as_well() -> None:
    arena = Arena(MIB)
    arena.open()
    exported = memoryview(arena.view)
    with pytest.raises(ArenaBusy):
        arena.close()
    exported.release()
    arena.close()


def test_memory_that_cannot_be_had_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ArenaExhausted, match="memory budget"):
        Arena(1 << 60).open()


def test_what_of_huge_pages_was_given_is_said() -> None:
    with Arena(4 * MIB, huge_pages=True) as arena:
        (note,) = arena.notes
        given = huge_bytes(arena.address)
        assert arena.address % (2 * MIB) == 0
        assert given or "transparent_hugepage" in note
        if given:
            assert note == f"{min(given, 4 * MIB) >> 20} of the arena's 4 MiB are in huge pages"


def resident(begin: int, end: int) -> int:
    """Bytes in memory of this process' mappings that overlap a range (proc_pid_smaps(5))."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ")[0]
        if "-" in head:
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first < end and begin < last
        elif inside and head == "Rss:":
            total += int(line.split()[1]) << 10
    return total


def test_no_huge_page_reaches_past_the_end() -> None:
    """It would be memory that the budget does not count."""
    with Arena(3 * MIB, huge_pages=True) as arena:
        assert resident(arena.address, arena.address + arena.nbytes) == 3 * MIB


def test_an_arena_below_a_huge_page_takes_no_more_than_it_needs() -> None:
    with Arena(MIB, huge_pages=True) as arena:
        assert arena.alignment == 4096 and huge_bytes(arena.address) == 0


def test_only_what_was_asked_for_is_resident() -> None:
    """Up to 2 MiB beside it are mapped for the alignment's sake; the budget knows nothing of them."""
    with Arena(mmap.PAGESIZE, 2 * MIB) as arena:
        assert _resident_of(arena.address) == mmap.PAGESIZE


def test_a_child_does_not_inherit_it() -> None:
    # Without VM_DONTCOPY a fork during a direct read may leave the bytes in the child's copy (open(2)).
    with Arena(MIB) as arena:
        assert "dc" in _flags_of(arena.address)


def _resident_of(address: int) -> int:
    """Bytes of the mapping that holds ``address`` that are in memory."""
    return int(_field_of(address, "Rss:")[0]) << 10


def _flags_of(address: int) -> list[str]:
    """VmFlags of the mapping that holds ``address``."""
    return _field_of(address, "VmFlags:")


def _field_of(address: int, name: str) -> list[str]:
    """A field of the mapping that holds ``address`` (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ")[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            inside = start <= address < end
        elif inside and head == name:
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.parametrize(("nbytes", "alignment"), [(0, 4096), (-1, 4096), (1, 0), (1, 3)])
def test_impossible_sizes_are_refused(nbytes: int, alignment: int) -> None:
    with pytest.raises(ValueError, match="is"):
        Arena(nbytes, alignment)
