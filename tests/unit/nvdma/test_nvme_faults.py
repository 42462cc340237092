"""Does every way in which a controller can fail end in time, in an error of ours, and with memory left alone?"""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress

import pytest

from nvdma.errors import (
    ControllerFatal,
    DeadlineExceeded,
    DeviceGone,
    DmaError,
    QueueClosed,
)
from nvdma.nvme import spec
from nvdma.pci.dma import PAGE
from support.nvme_firmware import Model
from support.nvme_rig import Rig, content, opened
from support.nvme_script import Effect, Rule

IMAGE = content(1 << 20)


def test_a_controller_that_never_becomes_ready_is_given_up_in_time() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.device.script.stuck_enable = True
        with pytest.raises(DeadlineExceeded, match=r"waited 0\.5 s for nvme7: CSTS\.RDY to become 1"):
            rig.open()
        assert rig.device.read32(spec.CC) & 1 == 0
        rig.assert_clean()


def test_a_controller_that_never_stops_is_told_so_nobody_reuses_its_memory() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.open()
        queue = rig.queue()
        rig.device.script.stuck_disable = True
        with pytest.raises(DeadlineExceeded, match=r"CSTS\.RDY to become 0"):
            rig.controller.quiesce()
        with pytest.raises(QueueClosed):
            queue.reap()
        rig.device.script.stuck_disable = False
        rig.device.write32(spec.CC, 1)
        rig.controller.quiesce()


def test_a_controller_that_fails_while_it_starts_is_not_waited_for() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE}, Model(timeout=60))
        rig.device.script.fatal_enable = True
        with pytest.raises(ControllerFatal, match=r"CSTS\.CFS"):
            rig.open()
        rig.assert_clean()


def test_a_fatal_error_while_reading_is_found_and_a_reset_brings_the_drive_back() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.FATAL, spec.READ))
        queue = rig.queue()
        rig.controller.check()
        queue.submit(rig.small_reads(2)[0])
        assert queue.reap() == []
        with pytest.raises(ControllerFatal):
            rig.controller.check()
        rig.controller.reset()
        with pytest.raises(QueueClosed):
            queue.reap()
        assert rig.read(rig.queue(), 0, PAGE) == IMAGE[:PAGE]


def test_a_controller_that_somebody_else_has_reset_is_not_waited_for() -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.open()
        queue, (entries, _) = rig.queue(), rig.small_reads(4)
        rig.device.reset_function()
        queue.submit(entries)
        with pytest.raises(ControllerFatal, match=r"CSTS\.RDY"):
            rig.wait(queue)
    assert rig.device.bus.faults == []


def test_a_fatal_error_ends_the_wait_for_an_admin_command() -> None:
    with opened({1: IMAGE}) as rig:
        rig.device.script.rules.append(Rule(Effect.FATAL, spec.GET_LOG_PAGE, admin=True))
        with pytest.raises(ControllerFatal, match=r"CSTS\.CFS"):
            rig.controller.health()


@pytest.mark.parametrize("opcode", [
    spec.IDENTIFY, spec.SET_FEATURES, spec.CREATE_IO_CQ, spec.CREATE_IO_SQ, spec.GET_LOG_PAGE, spec.DELETE_IO_SQ,
    spec.DELETE_IO_CQ])
@pytest.mark.parametrize("effect", [Effect.FAIL, Effect.LOSE, Effect.DUPLICATE, Effect.FATAL, Effect.VANISH])
def test_whatever_goes_wrong_with_any_command_ends_in_an_error_of_ours(opcode: int, effect: Effect) -> None:
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        rig.device.script.rules.append(Rule(effect, opcode, admin=True, status=0x06))
        with suppress(DmaError):
            rig.open()
            rig.read(rig.queue(), 0, PAGE)
            rig.controller.health()
        rig.controller.shutdown()
        rig.controller.shutdown()
        assert rig.device.queues.gone or not rig.device.read32(spec.CSTS) & 1
        rig.assert_clean()


def life(rig: Rig, stack: ExitStack) -> None:
    """All a controller goes through."""
    rig.controller.open(stack)
    rig.read(rig.queue(), 0, PAGE)
    rig.controller.health()
    rig.controller.reset()
    rig.controller.delete_queue(rig.queue())
    rig.queue()
    rig.controller.shutdown()


def test_a_drive_pulled_out_at_any_moment_is_missed_at_once_and_closes_without_a_word_more() -> None:
    """At each access to its registers in turn, from the first to the last of a life."""
    with ExitStack() as stack:
        rig = Rig(stack, {1: IMAGE})
        life(rig, stack)
        accesses = rig.device.accesses
    assert accesses > 50
    for moment in range(accesses):
        with ExitStack() as stack:
            rig = Rig(stack, {1: IMAGE})
            rig.device.script.vanish_at = moment
            with suppress(DeviceGone):
                life(rig, stack)
            with pytest.raises(DeviceGone, match="gone from the bus"):
                rig.controller.check()
            rig.controller.shutdown()
            rig.assert_clean()


def test_shutting_down_a_drive_that_is_gone_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        rig = Rig(stack, {1: IMAGE})
        rig.open()
        rig.queue()
        rig.device.queues.gone = True
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "nvme7: its registers read all ones" in caplog.text
