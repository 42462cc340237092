"""Are functions named, addresses handed out and registers bounded as a device needs it?"""

from __future__ import annotations

import ctypes
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdma.errors import ArenaExhausted, DeadlineExceeded
from nvdma.pci.address import PciAddress
from nvdma.pci.dma import PAGE, Contiguous, Scattered
from nvdma.pci.iova import ALIGNMENT, IovaRange, IovaSpace
from nvdma.pci.mmio import MappedRegisters, wait_until
from nvdma.pci.vfio import parse_iova_ranges
from nvdma.pci.vfio_calls import VfioError

GIB = 1 << 30


def test_an_address_is_read_and_written_as_the_kernel_does() -> None:
    assert str(PciAddress.parse("0000:01:00.0")) == "0000:01:00.0"
    assert PciAddress.parse("10000:e1:1f.7") == PciAddress(0x10000, 0xE1, 0x1F, 7)


@pytest.mark.parametrize("text", [
    "", "01:00.0", "0000:01:00.8", "0000:01:20.0", "0000:01:00.0/../..", "0000:01:00.0\n"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """It becomes part of a path below /sys."""
    with pytest.raises(ValueError, match="no PCI address"):
        PciAddress.parse(text)


@given(st.lists(st.integers(1, 3 * GIB), max_size=30))
def test_stretches_do_not_overlap_and_stay_in_their_ranges(sizes: list[int]) -> None:
    ranges = [IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, (1 << 39) - 1)]
    space = IovaSpace(ranges)
    taken = sorted((space.take(size), size) for size in sizes)
    for (first, size), (following, _) in pairwise(taken):
        assert first + size <= following
    for first, size in taken:
        assert first % ALIGNMENT == 0 and first > 0
        assert any(found.first <= first and first + size - 1 <= found.last for found in ranges)


def test_an_address_space_that_is_full_says_so() -> None:
    space = IovaSpace([IovaRange(0, 8 * ALIGNMENT - 1)])
    assert space.take(7 * ALIGNMENT) == ALIGNMENT
    with pytest.raises(ArenaExhausted, match="no 1 addresses"):
        space.take(1)


def info(*capabilities: bytes) -> bytes:
    """A struct vfio_iommu_type1_info with a chain of capabilities."""
    body, at = b"", 24
    for number, content in enumerate(capabilities):
        last = number == len(capabilities) - 1
        body += content[:4] + struct.pack("=I", 0 if last else at + len(body) + len(content)) + content[8:]
    return struct.pack("=IIQII", at + len(body), 3 if capabilities else 1, 4096, at if capabilities else 0, 0) + body


def test_the_iommus_ranges_are_found_behind_other_capabilities() -> None:
    limit = struct.pack("=HHII", 3, 1, 0, 65535)
    ranges = struct.pack("=HHIIIQQQQ", 1, 1, 0, 2, 0, 0, 0xFEDFFFFF, 0xFEF00000, (1 << 39) - 1)
    assert parse_iova_ranges(info(limit, ranges)) == [IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, (1 << 39) - 1)]


@pytest.mark.parametrize("answer", [info(), info(struct.pack("=HHII", 3, 1, 0, 65535))])
def test_a_kernel_that_names_no_ranges_is_not_guessed_about(answer: bytes) -> None:
    with pytest.raises(VfioError, match="which addresses"):
        parse_iova_ranges(answer)


def test_pages_are_those_the_device_sees() -> None:
    bus = Contiguous(0x2_0000_0000)
    assert bus.pages(PAGE, 2 * PAGE + 1).tolist() == [0x2_0000_1000, 0x2_0000_2000, 0x2_0000_3000]
    assert bus.at(5) == 0x2_0000_0005


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 4 * PAGE), (3 * PAGE, 1), (2 * PAGE, PAGE + 1), (-PAGE, PAGE)])
def test_scattered_memory_has_no_pages_beyond_its_end(offset: int, nbytes: int) -> None:
    """Less than what was asked for would become a command with too few addresses."""
    memory = Scattered(np.array([7, 3, 9], np.uint64) * PAGE)
    assert memory.pages(PAGE, 2 * PAGE).tolist() == [3 * PAGE, 9 * PAGE]
    with pytest.raises(ValueError, match="3 pages"):
        memory.pages(offset, nbytes)


def test_registers_are_read_and_written_whole_and_inside_their_window() -> None:
    memory = (ctypes.c_uint64 * 2)(0x1122334455667788, 0)
    registers = MappedRegisters(ctypes.addressof(memory), 16)
    assert (registers.read64(0), registers.read32(4)) == (0x1122334455667788, 0x11223344)
    registers.write32(12, 0xAABBCCDD)
    registers.write64(0, 1)
    assert list(memory) == [1, 0xAABBCCDD00000000]
    for offset, read in ((16, registers.read32), (-4, registers.read32), (2, registers.read32), (12, registers.read64)):
        with pytest.raises(ValueError, match="is not in a window"):
            read(offset)


def test_a_wait_that_ends_in_vain_says_for_what() -> None:
    with pytest.raises(DeadlineExceeded, match=r"waited 0\.01 s for the moon"):
        wait_until(lambda: False, 0.01, "the moon")
