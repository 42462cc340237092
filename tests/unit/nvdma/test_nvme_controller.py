"""Is a controller brought up, used and let go of so that memory is never written behind our back?"""

from __future__ import annotations

import logging
import struct
from contextlib import ExitStack

import pytest

from nvdma.errors import (
    CommandFailed,
    ControllerFatal,
    ControllerRefused,
    DeadlineExceeded,
    NamespaceRefused,
    QueueClosed,
)
from nvdma.nvme import spec
from nvdma.nvme.admin import ADMIN_BYTES, AsyncEvent
from nvdma.nvme.controller import Controller
from nvdma.nvme.queue import queue_bytes
from nvdma.pci.dma import PAGE
from support.nvme_firmware import Model
from support.nvme_rig import BLOCK, Rig, content, opened, reaped
from support.nvme_script import Effect, Rule

IMAGE = content(1 << 20)


def test_a_controller_says_what_it_is_and_what_it_holds() -> None:
    with opened({1: IMAGE, 4: IMAGE[:PAGE]}) as rig:
        facts = rig.controller.facts
        assert (facts.serial, facts.model, facts.firmware) == ("S1", "Scripted Drive", "1.0")
        assert [(found.nsid, found.nbytes) for found in rig.controller.namespaces] == [(1, 1 << 20), (4, PAGE)]
        assert rig.controller.namespace(4).blocks == 8
        assert rig.controller.queue_limit == 4


@pytest.mark.parametrize("model", [
    Model(dstrd=2), Model(dstrd=5), Model(mqes=1), Model(mdts=0), Model(aerl=0), Model(queues=1), Model(css=0x41)])
def test_controllers_of_every_make_are_read_from(model: Model) -> None:
    with opened({1: IMAGE}, model) as rig:
        assert rig.read(rig.queue(2), 3, PAGE) == IMAGE[3 * BLOCK :][:PAGE]


def test_no_limit_of_transfers_is_told_as_none() -> None:
    with opened({1: IMAGE}, Model(mdts=0)) as rig:
        assert rig.controller.facts.max_transfer is None


def test_a_controller_that_somebody_left_running_is_stopped_before_it_learns_our_addresses() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.open()
        rig.queue()
        other = Controller(rig.device, rig.memory(ADMIN_BYTES), "again")
        other.open(stack)
        assert rig.device.history == ["enabled", "disabled", "enabled"]
        assert rig.device.queues.io_queues == 0
        rig.assert_clean()


def test_a_controller_that_somebody_has_just_started_is_let_come_up_before_it_is_stopped() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.device.script.reads_until_ready = 5
        rig.device.write32(spec.CC, 0x460001)
        rig.open()
        rig.assert_clean()


@pytest.mark.parametrize(("model", "what"), [
    (Model(mpsmin=1), "smallest memory page is 8192"), (Model(css=0x40), "does not have the NVM command set"),
    (Model(sqes=0x77), "SQES allows"), (Model(cqes=0x55), "CQES allows")])
def test_a_controller_we_cannot_work_with_is_refused_and_left_stopped(model: Model, what: str) -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE}, model)
        with pytest.raises(ControllerRefused, match=what):
            rig.open()
        assert not rig.device.read32(spec.CSTS) & 1
        rig.assert_clean()


def test_a_namespace_we_cannot_read_does_not_hide_the_others() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE, 2: IMAGE, 3: IMAGE})
        rig.device.firmware.patches[0, 2] = {26: b"\x10", 128: struct.pack("<I", 9 << 16 | 8)}
        rig.open()
        assert [found.nsid for found in rig.controller.namespaces] == [1, 3]
        with pytest.raises(NamespaceRefused, match="namespace 2: 8 bytes of metadata"):
            rig.controller.namespace(2)
        with pytest.raises(NamespaceRefused, match=r"namespace 9 is not active; choose another \(1, 3\)"):
            rig.controller.namespace(9)
        rig.device.firmware.patches.clear()
        rig.controller.reset()
        assert rig.controller.namespace(2).nbytes == 1 << 20


# Queues.

def test_queues_are_created_up_to_what_was_granted_and_their_numbers_used_again() -> None:
    with opened({1: IMAGE}, Model(queues=2)) as rig:
        first, second = rig.queue(), rig.queue(vector=3)
        assert (first.qid, second.qid) == (1, 2)
        with pytest.raises(ControllerRefused, match="it has 2 queues of up to 1024, 0 of them free"):
            rig.queue()
        rig.controller.delete_queue(first)
        assert rig.queue().qid == 1
        assert rig.read(second, 0, PAGE) == IMAGE[:PAGE]


def test_a_queue_longer_than_the_controller_can_is_refused() -> None:
    with opened({1: IMAGE}, Model(mqes=15)) as rig:
        assert rig.read(rig.queue(16), 0, PAGE) == IMAGE[:PAGE]
        with pytest.raises(ControllerRefused, match="no queue of 17 entries"):
            rig.queue(17)


@pytest.mark.parametrize("opcode", [spec.CREATE_IO_CQ, spec.CREATE_IO_SQ])
def test_a_queue_that_was_refused_leaves_nothing_behind(opcode: int) -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.FAIL, opcode, admin=True, status=0x102))
        with pytest.raises(CommandFailed, match="Queue 1 failed: Invalid Queue Size") as caught:
            rig.queue()
        # While somebody still holds the error, its traceback holds the queue: the memory must be free all the same.
        assert caught.value.code == 2
        assert rig.device.queues.io_queues == 0
        assert rig.read(rig.queue(), 0, PAGE) == IMAGE[:PAGE]


def test_a_vector_the_controller_does_not_have_is_refused() -> None:
    with opened({1: IMAGE}) as rig, pytest.raises(CommandFailed, match="Invalid Interrupt Vector"):
        rig.queue(vector=4)


# Commands.

def test_a_hanging_command_is_aborted_and_completes_as_such() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.LOSE, spec.READ))
        queue = rig.queue()
        (cid,) = queue.submit(rig.small_reads(1)[0])
        assert rig.controller.abort(queue, cid)
        assert reaped(queue) == [(cid, 0x07)]
        assert not rig.controller.abort(queue, cid)


def test_health_and_error_log_come_from_the_drive() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.firmware.smart[0:6] = struct.pack("<BHBBB", 1, 300, 5, 10, 99)
        rig.device.firmware.errors.append(struct.pack("<QHHHHQI", 1, 1, 2, 0x281 << 1, 0, 7, 1).ljust(64, b"\0"))
        health = rig.controller.health()
        assert (health.temperature, health.percentage_used) == (27, 99)
        assert health.warnings == ("spare capacity below its threshold",)
        assert [(entry.lba, entry.status) for entry in rig.controller.error_log()] == [(7, "Unrecovered Read Error")]


@pytest.mark.parametrize("elpe", [0, 255])
def test_error_logs_of_every_length_fit_into_the_page(elpe: int) -> None:
    with opened({1: IMAGE}, Model(elpe=elpe)) as rig:
        rig.device.firmware.errors += [struct.pack("<Q", 256 - at).ljust(64, b"\0") for at in range(elpe + 1)]
        assert [entry.count for entry in rig.controller.error_log()] == list(range(256, 256 - min(elpe + 1, 64), -1))


def test_events_are_reported_and_asked_for_again() -> None:
    with opened({1: IMAGE}, Model(aerl=0)) as rig:
        assert rig.controller.events() == []
        for temperature in (1, 2):
            rig.device.report_event(0x02_00_01 | temperature << 8)
            assert rig.controller.events() == [AsyncEvent(1, temperature, 2)]
        rig.device.report_event(0x02_01_01)
        assert rig.controller.health().warnings == ()
        assert len(rig.controller.events()) == 1


def test_a_failed_admin_command_says_which_and_why_and_the_next_one_works() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.FAIL, spec.GET_LOG_PAGE, admin=True, status=0x4109))
        with pytest.raises(CommandFailed, match=r"nvme7: Get Log Page, SMART .* failed: Invalid Log Page") as caught:
            rig.controller.health()
        assert (caught.value.code_type, caught.value.code, caught.value.do_not_retry) == (1, 9, True)
        assert rig.controller.health().temperature is None


def test_an_answer_that_never_came_is_not_an_earlier_one() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.firmware.smart[0:3] = struct.pack("<BH", 1, 300)
        assert rig.controller.health().temperature == 27
        rig.device.script.rules.append(Rule(Effect.FAIL, spec.GET_LOG_PAGE, admin=True, status=0))
        assert rig.controller.health().temperature is None


def test_an_admin_command_that_hangs_bars_the_page_it_may_still_write() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.LOSE, spec.GET_LOG_PAGE, admin=True))
        with pytest.raises(DeadlineExceeded, match="nvme7: Get Log Page, SMART / Health Information to complete"):
            rig.controller.health()
        with pytest.raises(ControllerFatal, match="never completed and may still write memory; reset"):
            rig.controller.error_log()
        rig.controller.reset()
        assert rig.controller.health().temperature is None


def test_an_admin_command_that_completes_late_frees_the_page_again() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.LOSE, spec.GET_LOG_PAGE, admin=True))
        with pytest.raises(DeadlineExceeded):
            rig.controller.health()
        (cid,) = rig.device.queues.sqs[0].started - set(rig.device.queues.events)
        rig.device.complete(0, cid)
        assert rig.controller.health().temperature is None


# The end.

def test_shutdown_deletes_queues_lets_the_drive_save_its_state_and_stops_it() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.open()
        rig.queue()
        rig.queue()
        rig.controller.shutdown()
        assert rig.device.history == ["enabled", "shutdown with 0 I/O queues", "disabled"]
        rig.assert_clean()
        with pytest.raises(ControllerFatal, match="it is stopped"):
            rig.controller.health()


def test_a_drive_that_does_not_finish_its_shutdown_is_stopped_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        rig = Rig(stack, {1: IMAGE})
        rig.open()
        rig.device.script.stuck_shutdown = True
    assert rig.device.history[-1] == "disabled"
    assert "no orderly shutdown: waited 0.05 s for nvme7: CSTS.SHST" in caplog.text


def test_a_drive_gets_the_time_it_says_its_shutdown_takes(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        rig = Rig(stack, {1: IMAGE}, Model(rtd3e=100_000))
        rig.open()
        rig.device.script.stuck_shutdown = True
    assert "waited 0.1 s for nvme7: CSTS.SHST" in caplog.text


def test_after_quiesce_no_read_lands_in_memory() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.manual = True
        queue = rig.queue()
        reads, data = rig.small_reads(4)
        queue.submit(reads)
        rig.device.step(1)
        rig.controller.quiesce()
        data.view[:] = bytes(data.nbytes)
        rig.device.step()
        assert bytes(data.view) == bytes(data.nbytes)
        with pytest.raises(QueueClosed):
            queue.reap()


def test_a_reset_takes_all_queues_and_gives_all_numbers_back() -> None:
    with opened({1: IMAGE}) as rig:
        memory = rig.memory(queue_bytes(16))
        for _ in range(3):
            queues = [rig.controller.create_queue(memory, 16), *(rig.queue() for _ in range(3))]
            assert [queue.qid for queue in queues] == [1, 2, 3, 4]
            assert rig.read(queues[0], 0, PAGE) == IMAGE[:PAGE]
            rig.controller.reset()
            assert rig.device.queues.io_queues == 0


def test_too_little_memory_is_refused_before_anything_is_started() -> None:
    with ExitStack() as stack:
        rig = Rig(stack)
        with pytest.raises(ValueError, match="less than"):
            Controller(rig.device, rig.memory(ADMIN_BYTES - PAGE), "nvme7")
