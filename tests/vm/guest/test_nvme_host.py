"""Does a drive of ours put the right bytes in the right place, and nothing anywhere else?"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from nvdma.arena import Arena
from nvdma.errors import BackendUnavailable, CommandRefused
from nvdma.types import Read
from vm.guest.machine import command_register, controllers
from vm.guest.taken import DEPTH, SECONDS, Taken, backend, drain, taken_from_the_kernel

MIB = 1 << 20
PAGE = 4096
BUS_MASTER = 1 << 2
CANARY = 0xA5
# As in vm/test_guests.py. What lies around it is nothing but zeros.
UNREADABLE = 48 * MIB


@pytest.fixture(scope="module", params=["LAB0", "LAB1"])
def taken(request: pytest.FixtureRequest) -> Iterator[Taken]:
    """Blocks of 512 bytes and transfers of 1 MiB; blocks of 4096 bytes and transfers of 512 KiB."""
    with taken_from_the_kernel(controllers()[request.param], 24 * MIB) as found:
        yield found


def test_every_byte_is_the_kernels_and_lands_where_it_was_asked_for(taken: Taken) -> None:
    """Pieces of many lengths, all over the drive, in a shuffled order; a canary page around each."""
    draw = Random(7)
    with Arena(32 * MIB) as arena, backend(taken, arena) as found:
        arena.view[:] = bytes([CANARY]) * arena.nbytes
        expected = bytearray(arena.view)
        reads, target = [], PAGE
        for tag in range(DEPTH):
            length = draw.choice([1, 2, 3, 77, 128, found.facts.max_read // PAGE]) * PAGE
            offset = draw.randrange(0, (len(taken.content) - length) // PAGE) * PAGE
            reads.append(Read(tag, 0, offset, length, target))
            expected[target : target + length] = taken.content[offset : offset + length]
            target += length + PAGE
        draw.shuffle(reads)
        found.submit(reads)
        assert drain(found) == {read.tag: read.length for read in reads}
        assert bytes(arena.view) == expected


def test_the_ring_goes_round_many_times(taken: Taken) -> None:
    with Arena(MIB) as arena, backend(taken, arena) as found:
        for turn in range(40):
            reads = [Read(tag, 0, (turn * 128 + tag) * PAGE, PAGE, tag * PAGE) for tag in range(DEPTH)]
            found.submit(reads)
            drain(found)
            begin = turn * 128 * PAGE
            assert bytes(arena.view[: DEPTH * PAGE]) == taken.content[begin : begin + DEPTH * PAGE], turn


def test_a_source_in_the_middle_of_the_drive_is_read_to_its_last_byte(taken: Taken) -> None:
    size = 3 * PAGE + 100
    with Arena(MIB) as arena, backend(taken, arena, offset=5 * PAGE, size=size) as found:
        found.submit([Read(0, 0, 2 * PAGE, 2 * PAGE, 0)])
        assert drain(found) == {0: PAGE + 100}
        assert arena.view[: PAGE + 100] == taken.content[7 * PAGE : 8 * PAGE + 100]


def test_a_source_past_the_end_is_refused(taken: Taken) -> None:
    with Arena(MIB) as arena, pytest.raises(BackendUnavailable, match="are not on a namespace"), \
            backend(taken, arena, offset=1 << 40):
        pass


def test_a_page_that_the_drive_cannot_read_is_named_and_all_others_are_read(taken: Taken) -> None:
    """QEMU answers with an error of the medium; the drive is usable afterwards."""
    before, pages = 3, 8
    with Arena(MIB) as arena, backend(taken, arena, offset=UNREADABLE - before * PAGE, size=pages * PAGE) as found:
        arena.view[:] = bytes([CANARY]) * arena.nbytes
        found.submit([Read(tag, 0, tag * PAGE, PAGE, tag * PAGE) for tag in range(pages)])
        done, refusals = [], []
        while found.in_flight:
            try:
                done += [completion.tag for completion in found.wait(SECONDS)]
            except CommandRefused as error:
                refusals.append(error)
        assert [refusal.tag for refusal in refusals] == [before] and "Unrecovered Read Error" in str(refusals[0])
        assert sorted([*done, before]) == list(range(pages))
        for tag in done:
            assert bytes(arena.view[tag * PAGE : (tag + 1) * PAGE]) == bytes(PAGE), tag
        found.submit([Read(0, 0, 0, PAGE, before * PAGE)])
        assert drain(found) == {0: PAGE} and bytes(arena.view[: pages * PAGE]) == bytes(pages * PAGE)


def test_when_it_is_closed_with_reads_under_way_nothing_lands_any_more(taken: Taken) -> None:
    with Arena(32 * MIB) as arena:
        with backend(taken, arena) as found:
            found.submit([Read(tag, 0, tag * 512 << 10, 512 << 10, tag * 512 << 10) for tag in range(DEPTH)])
        arena.view[:] = bytes(arena.nbytes)
        assert not command_register(taken.address) & BUS_MASTER
        assert bytes(arena.view) == bytes(arena.nbytes)
