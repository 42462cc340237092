"""Are registers, entries and statuses where the specification says they are?"""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdma.nvme import commands, spec
from nvdma.nvme.spec import Field
from nvdma.nvme.status import NAMES, describe, failure


@given(st.integers(0, 60), st.integers(1, 32), st.data())
def test_a_field_comes_back_as_it_was_put_and_touches_no_other_bit(shift: int, bits: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, (1 << bits) - 1))
    word = Field(shift, bits).put(value)
    assert Field(shift, bits).get(word) == value
    assert word & ~((1 << bits) - 1 << shift) == 0


@pytest.mark.parametrize("value", [-1, 16, 1 << 40])
def test_a_value_that_would_spill_into_the_next_field_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit into 4 bits"):
        Field(20, 4).put(value)


def test_entries_have_the_sizes_that_the_rings_are_laid_out_with() -> None:
    assert spec.SQE.itemsize == 64
    assert [spec.IDENTIFY_CONTROLLER.itemsize, spec.IDENTIFY_NAMESPACE.itemsize] == [4096, 4096]
    assert [spec.SMART.itemsize, spec.ERROR.itemsize] == [512, 64]


@pytest.mark.parametrize(("qid", "stride", "tail", "head"), [
    (0, 0, 0x1000, 0x1004), (1, 0, 0x1008, 0x100C), (1, 2, 0x1020, 0x1030), (3, 4, 0x1180, 0x11C0)])
def test_doorbells_are_as_far_apart_as_the_stride_says(qid: int, stride: int, tail: int, head: int) -> None:
    assert spec.doorbell(qid, stride, completion=False) == tail
    assert spec.doorbell(qid, stride, completion=True) == head


def words(entry: spec.Entries) -> tuple[int, ...]:
    """The double words of one entry."""
    return struct.unpack("<16I", entry.tobytes())


def test_a_read_names_its_blocks_from_zero_and_its_address_in_two_halves() -> None:
    entry = commands.read(7, 0x1_2345_6789, 8, 0xAA_0000_1000, 0xBB_0000_2000)
    assert words(entry) == (2, 7, 0, 0, 0, 0, 0x1000, 0xAA, 0x2000, 0xBB, 0x23456789, 1, 7, 0, 0, 0)


def test_reads_of_a_layer_are_prepared_in_one_go() -> None:
    lbas, pages = np.arange(0, 80, 8, dtype=np.uint64), np.arange(10, dtype=np.uint64) * np.uint64(4096)
    entries = commands.read(1, lbas, 8, pages, 0)
    assert [words(entries[at : at + 1])[10:13] for at in range(10)] == [(8 * at, 0, 7) for at in range(10)]
    assert entries["prp1"].tolist() == pages.tolist()


@pytest.mark.parametrize("blocks", [0, 65537])
def test_a_read_of_no_blocks_does_not_become_one_of_65536(blocks: int) -> None:
    with pytest.raises(ValueError, match="blocks a command"):
        commands.read(1, 0, blocks, 0, 0)


def test_queues_are_described_from_zero() -> None:
    assert words(commands.create_completion_queue(3, 64, 0x1000, 2))[10:12] == (63 << 16 | 3, 2 << 16 | 3)
    assert words(commands.create_completion_queue(3, 64, 0x1000, None))[11] == 1
    assert words(commands.create_submission_queue(3, 64, 0x1000))[10:12] == (63 << 16 | 3, 3 << 16 | 1)
    assert words(commands.set_queue_count(8))[10:12] == (7, 7 << 16 | 7)
    assert words(commands.abort(3, 0x1234))[10] == 0x1234 << 16 | 3
    assert words(commands.get_log_page(2, 512, 0x1000))[1:11:9] == (0xFFFFFFFF, 127 << 16 | 2)


@pytest.mark.parametrize(("status", "name"), [
    (0x0002, "Invalid Field in Command"), (0x0080, "LBA Out of Range"), (0x0281, "Unrecovered Read Error"),
    (0x0101, "Invalid Queue Identifier"), (0x07C0, "vendor specific status 0xc0"), (0x0500, "reserved status 0x00"),
    (0x00FF, "generic command status 0xff")])
def test_a_status_is_told_in_the_specifications_words(status: int, name: str) -> None:
    assert describe(status) == name


def test_an_error_says_what_failed_where_and_whether_to_try_again() -> None:
    error = failure(0x4281, "nvme7 queue 1: Read", lba=1234)
    assert (error.code_type, error.code, error.do_not_retry, error.lba) == (2, 0x81, True, 1234)
    assert str(error) == ("nvme7 queue 1: Read at LBA 1234 failed: Unrecovered Read Error (status 0x2/0x81, "
                          f"do not retry); {error.hint}")
    assert not failure(0x0281, "Read").do_not_retry


def test_names_are_those_of_three_bits_of_type_and_eight_of_code() -> None:
    assert all(0 <= code_type < 8 and 0 <= code < 256 and name for (code_type, code), name in NAMES.items())
