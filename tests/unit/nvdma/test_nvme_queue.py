"""Does every command get to the controller once, and every completion back to its command, round after round?"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvdma.errors import ControllerRefused, DeadlineExceeded, QueueClosed, QueueFull, UnknownCompletion
from nvdma.nvme import commands, spec
from nvdma.nvme.queue import QueuePair, queue_bytes
from nvdma.pci.dma import PAGE
from support.nvme_firmware import Image, Model
from support.nvme_rig import BLOCK, Rig, cids, content, opened, reaped
from support.nvme_script import Effect, Rule

IMAGE = content(1 << 20)


def block(number: int) -> bytes:
    """What is in a block of the image."""
    return IMAGE[number * BLOCK : (number + 1) * BLOCK]


@pytest.mark.parametrize("nbytes", [BLOCK, PAGE, 2 * PAGE, 2 * PAGE + BLOCK, 32 * PAGE])
@pytest.mark.parametrize("scattered", [False, True])
def test_what_is_read_is_what_the_namespace_holds(nbytes: int, scattered: bool) -> None:
    with opened({1: IMAGE}) as rig:
        assert rig.read(rig.queue(), 24, nbytes, scattered=scattered) == IMAGE[24 * BLOCK :][:nbytes]


def test_the_longest_command_reads_513_pages() -> None:
    image = content(4 << 20)
    with opened({1: image}, Model(mdts=0)) as rig:
        assert rig.read(rig.queue(), 8, 513 * PAGE) == image[8 * BLOCK :][: 513 * PAGE]


def test_namespaces_are_told_apart_and_so_are_their_blocks() -> None:
    images = {1: Image(bytearray(content(64 << 10, 1))), 3: Image(bytearray(content(64 << 10, 3)), block=4096)}
    with opened(images) as rig:
        queue = rig.queue()
        assert rig.read(queue, 1, PAGE) == bytes(images[1].data[512 : 512 + PAGE])
        assert rig.read(queue, 2, 2 * PAGE, nsid=3) == bytes(images[3].data[8192 : 8192 + 2 * PAGE])


def test_what_was_written_is_read_back() -> None:
    with opened({1: IMAGE}) as rig:
        queue, data = rig.queue(), rig.memory(PAGE)
        data.view[:] = content(PAGE, 9)
        queue.submit(commands.write(1, 16, 8, data.bus.at(0), 0))
        rig.wait(queue)
        queue.submit(commands.flush(1))
        assert [completion.status for completion in rig.wait(queue)] == [0]
        assert rig.read(queue, 16, PAGE) == content(PAGE, 9)


@settings(deadline=None)
@given(entries=st.integers(2, 9), stride=st.integers(0, 3), reverse=st.booleans(),
       batches=st.lists(st.integers(1, 8), min_size=20, max_size=60))
def test_bytes_are_right_however_often_the_rings_wrap(
    entries: int, stride: int, reverse: bool, batches: list[int]
) -> None:
    """Rings of every small size, batches of every size, in order and in reverse: the phase flips dozens of times."""
    with opened({1: IMAGE}, Model(dstrd=stride)) as rig:
        rig.device.script.reverse = reverse
        queue = rig.queue(entries)
        for number, wanted in enumerate(batches):
            count = min(wanted, queue.room)
            reads, data = rig.small_reads(count, 7 * number)
            submitted = queue.submit(reads)
            assert sorted(cids(rig.wait(queue))) == submitted
            assert [bytes(data.view[at * PAGE :][:BLOCK]) for at in range(count)] == [
                block(7 * number + at) for at in range(count)]
        assert queue.outstanding == 0


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=10, max_size=60))
def test_a_queue_that_is_never_empty_loses_nothing(steps: list[tuple[int, int]]) -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.manual = True
        queue, waiting = rig.queue(8), []
        for submitted, carried_out in steps:
            waiting += queue.submit(rig.small_reads(min(submitted, queue.room) or 1)[0]) if queue.room else []
            rig.device.step(carried_out)
            done = reaped(queue)
            assert done == [(cid, 0) for cid in waiting[: len(done)]]
            waiting = waiting[len(done) :]
            assert queue.outstanding == len(waiting)


def test_a_ring_of_n_holds_one_less_and_takes_all_of_a_batch_or_nothing() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.manual = True
        queue = rig.queue(8)
        reads, _ = rig.small_reads(8)
        with pytest.raises(QueueFull, match="queue depth 7: 0 reads in flight and 8 more"):
            queue.submit(reads)
        queue.submit(reads[:5])
        with pytest.raises(QueueFull):
            queue.submit(reads[:3])
        assert (queue.outstanding, queue.room) == (5, 2)
        rig.device.step()
        assert len(queue.reap()) == 5


def test_prepared_entries_can_be_submitted_again_because_they_stay_as_they_were() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue()
        reads, _ = rig.small_reads(4)
        before = reads.tobytes()
        first = queue.submit(reads)
        rig.wait(queue)
        assert not set(queue.submit(reads)) & set(first)
        assert reads.tobytes() == before


def test_one_doorbell_a_batch_because_each_is_a_trip_over_the_bus() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue()
        reads, _ = rig.small_reads(12)
        before = rig.device.accesses
        queue.submit(reads)
        assert rig.device.accesses == before + 1
        assert len(queue.reap()) == 12
        assert (queue.reap(), queue.submit(reads[:0])) == ([], [])
        assert rig.device.accesses == before + 1


@pytest.mark.parametrize(("mqes", "doorbells"), [(15, 60), (63, 15), (1023, 3)])
def test_room_for_completions_is_given_back_before_any_lacks_it(mqes: int, doorbells: int) -> None:
    """Completions are read in few doorbells, the fewer the larger the queue; the rig finds the ring never overrun."""
    with opened({1: IMAGE}, Model(mqes=mqes)) as rig:
        queue = rig.queue()
        reads, _ = rig.small_reads(15)
        before = rig.device.accesses
        for _ in range(60):
            given_out = queue.submit(reads)
            assert cids(queue.reap()) == given_out
        assert rig.device.accesses == before + 60 + doorbells


def test_completions_that_are_not_wanted_yet_come_with_the_next_call() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue()
        given_out = queue.submit(rig.small_reads(12)[0])
        first, second, third = (queue.reap_plain(5) for _ in range(3))
        assert [cid for cid, _, _ in (*first, *second, *third)] == given_out
        assert [len(first), len(second), len(third)] == [5, 5, 2]


def test_a_command_waiting_for_long_keeps_its_identifier_while_all_others_go_round() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue(256)
        rig.device.script.rules.append(Rule(Effect.LOSE, spec.READ))
        (lost,) = queue.submit(rig.small_reads(1)[0])
        flushes = np.repeat(commands.flush(1), 254)
        seen: set[int] = set()
        for _ in range(258):
            given_out = queue.submit(flushes)
            assert cids(queue.reap()) == given_out
            seen |= set(given_out)
        # 258 * 254 is a little less than all 65535, which would be one too many: FFFFh names no command.
        seen |= set(queue.submit(flushes))
        assert seen == set(range(0xFFFF)) - {lost}
        assert queue.is_outstanding(lost)


def test_a_lost_completion_is_missed_in_time_and_named() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.LOSE, spec.READ))
        queue = rig.queue()
        queue.submit(rig.small_reads(1)[0])
        with pytest.raises(DeadlineExceeded, match="nvme7 queue 1: one of 1 commands to complete"):
            rig.wait(queue, 0.02)
        assert queue.outstanding == 1


def test_a_command_completed_twice_is_noticed() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.DUPLICATE, spec.READ))
        queue = rig.queue()
        (cid,) = queue.submit(rig.small_reads(1)[0])
        with pytest.raises(UnknownCompletion, match="nvme7 queue 1: completion of command 0x0000") as caught:
            queue.reap()
        assert caught.value.cid == cid


def test_a_command_completed_twice_does_not_stand_for_the_next_one() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue()
        (first,) = queue.submit(rig.small_reads(1)[0])
        queue.reap()
        rig.device.script.manual = True
        queue.submit(rig.small_reads(1)[0])
        rig.device.complete(1, first)
        with pytest.raises(UnknownCompletion):
            queue.reap()
        assert queue.outstanding == 1


def test_an_invented_completion_is_noticed() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue()
        rig.device.complete(1, 0x1234)
        with pytest.raises(UnknownCompletion, match="0x1234"):
            queue.reap()


@pytest.mark.parametrize("status", [0x0281, 0x4002, 0x0004])
def test_a_failed_read_keeps_its_status_and_the_others_go_on(status: int) -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.FAIL, spec.READ, status=status))
        queue = rig.queue()
        first, second = queue.submit(rig.small_reads(2)[0])
        assert reaped(queue) == [(first, status), (second, 0)]


def test_a_read_past_the_end_of_a_short_namespace_fails() -> None:
    with opened({1: IMAGE[: 10 * BLOCK]}) as rig:
        queue = rig.queue()
        inside, outside = queue.submit(rig.small_reads(2, 9)[0])
        assert reaped(queue) == [(inside, 0), (outside, 0x80)]


def test_one_descriptor_names_a_buffer_to_a_controller_that_takes_them() -> None:
    with opened({1: IMAGE}, Model(sgls=1)) as rig:
        assert rig.controller.facts.sgls
        queue, data = rig.queue(), rig.memory(5 * PAGE)
        queue.submit(commands.read_stretch(1, 3, 5 * PAGE // BLOCK, data.bus.at(0), 5 * PAGE))
        assert [completion.status for completion in rig.wait(queue)] == [0]
        assert data.view[: 5 * PAGE] == IMAGE[3 * BLOCK : 3 * BLOCK + 5 * PAGE]
    with pytest.raises(ValueError, match="no multiple of 4"):
        commands.read_stretch(1, 0, 1, 0x1002, BLOCK)


def test_a_read_longer_than_the_controller_allows_fails() -> None:
    with opened({1: IMAGE}, Model(mdts=2)) as rig:
        assert rig.controller.facts.max_transfer == 4 * PAGE
        queue = rig.queue()
        (cid,) = queue.submit(rig.entry(rig.memory(5 * PAGE), 0, 5 * PAGE))
        assert reaped(queue) == [(cid, 0x02)]


def test_a_closed_queue_says_so() -> None:
    with opened({1: IMAGE}) as rig:
        queue = rig.queue()
        rig.controller.delete_queue(queue)
        for use in (queue.reap, lambda: queue.submit(rig.small_reads(1)[0]), lambda: rig.wait(queue, 0.01)):
            with pytest.raises(QueueClosed, match="nvme7 queue 1 is closed"):
                use()
        queue.close()


def test_completions_left_from_an_earlier_queue_are_not_taken_for_new_ones() -> None:
    with opened({1: IMAGE}) as rig:
        memory = rig.memory(queue_bytes(4))
        for _ in range(3):
            queue = rig.controller.create_queue(memory, 4)
            assert queue.reap() == []
            queue.submit(rig.small_reads(3)[0])
            assert len(queue.reap()) == 3
            rig.controller.delete_queue(queue)


@pytest.mark.parametrize("entries", [0, 1, 4097])
def test_a_ring_of_an_impossible_size_is_refused(entries: int) -> None:
    with ExitStack() as stack, pytest.raises(ValueError, match="has not 2 to 4096"):
        rig = Rig(stack)
        QueuePair(1, entries, rig.device, rig.memory(PAGE), stride=0)


def test_a_ring_must_fit_into_its_memory_and_be_in_one_piece() -> None:
    with ExitStack() as stack:
        rig = Rig(stack)
        with pytest.raises(ValueError, match="outside its memory"):
            QueuePair(1, 64, rig.device, rig.memory(PAGE), stride=0)
        with pytest.raises(ControllerRefused, match="not in one piece"):
            QueuePair(1, 1024, rig.device, rig.memory(queue_bytes(1024), scattered=True), stride=0)
        QueuePair(1, 64, rig.device, rig.memory(queue_bytes(64), scattered=True), stride=0)
