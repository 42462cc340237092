"""Does memory that a killed process gave back stay untouched by the drives that it drove, and are they usable after?"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from nvdma.arena import Arena
from nvdma.types import Read
from vm.guest.machine import command_register, controllers
from vm.guest.taken import DEPTH, SECONDS, Taken, backend, drain, taken_from_the_kernel

PIECE = 512 << 10
KILLS = 50  # of each of two processes
BUS_MASTER = 1 << 2
CANARY = 0xA5


@pytest.fixture
def both() -> Iterator[Sequence[Taken]]:
    """Blocks of 512 bytes and of 4096."""
    with ExitStack() as stack:
        yield [stack.enter_context(taken_from_the_kernel(address, PIECE)) for address in controllers().values()]


def read_for_ever(taken: Taken, ready: int) -> None:
    """With a full queue; tells `ready` once it has begun."""
    with Arena(DEPTH * PIECE) as arena, backend(taken, arena, size=DEPTH * PIECE) as found:
        submitted = 0
        while True:
            tags = range(submitted, submitted + found.facts.depth - found.in_flight)
            found.submit([Read(tag, 0, tag % DEPTH * PIECE, PIECE, tag % DEPTH * PIECE) for tag in tags])
            if not submitted:
                os.write(ready, b"!")
            submitted += len(tags)
            found.wait(SECONDS)


def start_reading(taken: Taken) -> tuple[int, int]:
    """A child that reads, and the pipe that says so: the kernel's resets of two drives go on beside each other."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            read_for_ever(taken, writing)
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


def told(taken: Taken, reading: int) -> bytes:
    """The word that a child has begun."""
    ready, _, _ = select.select([reading], [], [], SECONDS)
    assert ready, f"the process that opens {taken.address} has not begun to read in {SECONDS:.0f} s"
    return os.read(reading, 1)


def kill_while_reading(drives: Sequence[Taken]) -> None:
    """A process for each drive, and kill -9 when all read; also when one does not, for the kernel waits for them."""
    readers = [start_reading(taken) for taken in drives]
    try:
        begun = [told(taken, reading) for taken, (_, reading) in zip(drives, readers, strict=True)]
    finally:
        for child, reading in readers:
            os.kill(child, signal.SIGKILL)
            os.close(reading)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in readers]
    assert begun == [b"!"] * len(drives) and ended == [-signal.SIGKILL] * len(drives)


def test_a_hundred_kills_with_reads_under_way(both: Sequence[Taken]) -> None:
    """What the killed ones gave back is ours soon after: not a byte of it may change."""
    canary = bytes([CANARY]) * (len(both) * DEPTH * PIECE)
    for _ in range(KILLS):
        kill_while_reading(both)
        with Arena(len(canary)) as witness:
            witness.view[:] = canary
            assert not any(command_register(taken.address) & BUS_MASTER for taken in both)
            assert bytes(witness.view) == canary
    for taken in both:
        with Arena(PIECE) as arena, backend(taken, arena) as found:
            found.submit([Read(0, 0, 0, PIECE, 0)])
            drain(found)
            assert bytes(arena.view) == taken.content
