"""Is a fence of a card's done when its work is, never earlier, and is VRAM handed out once?"""

from __future__ import annotations

import ctypes
import threading
from contextlib import ExitStack

import pytest

from nvdma.errors import GpuFailed, GpuOutOfMemory
from nvdma.gpu.event import EventFence, Events
from nvdma.gpu.vram import ALIGNMENT, Vram
from nvdma.memory import MemoryKind
from support.fiber_gpu import FiberDriver

SECONDS = 5.0


def test_a_fence_is_done_when_what_was_put_before_it_is() -> None:
    driver = FiberDriver()
    stream, source, to = driver.stream(), ctypes.create_string_buffer(b"bytes"), ctypes.create_string_buffer(5)
    driver.copy(ctypes.addressof(to), ctypes.addressof(source), 5, stream)
    fence = Events(driver, 2).record(stream, "a copy")
    assert str(fence) == "a copy" and to.raw == bytes(5)
    assert fence.wait(SECONDS) and to.raw == b"bytes" and fence.done()


def test_a_wait_ends_at_its_deadline() -> None:
    """A card that hangs must not hang the engine."""
    driver = FiberDriver()
    stream = driver.stream()
    driver.held.add(stream)
    fence = Events(driver, 1).record(stream, "what never ends")
    assert not fence.wait(0.01) and not fence.done()
    driver.held.clear()
    assert fence.wait(0.0)


def test_a_fence_is_not_done_because_its_event_was_wanted_for_another() -> None:
    """A stream that lags behind, and another whose fences are all done: more of them than there were events."""
    driver = FiberDriver()
    slow, fast = driver.stream(), driver.stream()
    events = Events(driver, 3)
    driver.held.add(slow)
    fence = events.record(slow, "the slow one")
    for number in range(10):
        assert events.record(fast, f"number {number}").wait(SECONDS)
        assert not fence.done(), number
    driver.held.clear()
    assert fence.wait(SECONDS)


def test_a_fence_stays_done_while_its_event_is_used_anew() -> None:
    """A segment that stays in VRAM: who runs it a thousand stages later waits for none of them."""
    driver = FiberDriver()
    stream, other = driver.stream(), driver.stream()
    events = Events(driver, 2)
    old = events.record(stream, "long ago")
    assert old.wait(SECONDS)
    driver.held.add(stream)
    later = [events.record(stream, "of today") for _ in range(4)]
    assert old.done() and old.wait(0.0) and not any(fence.done() for fence in later)
    old.hold(other)
    assert events.record(other, "nothing before it").wait(0.0)
    driver.held.clear()
    assert all(fence.wait(SECONDS) for fence in later)


def test_events_are_used_again() -> None:
    """A pass has hundreds of fences: the driver is not asked for an event for each."""
    driver = FiberDriver()
    stream, events, used = driver.stream(), Events(driver, 3), set()
    for _ in range(50):
        fence = events.record(stream, "a stage")
        assert fence.wait(SECONDS)
        used.add(fence.event.handle)
    assert len(used) == 3


def test_a_stream_held_by_a_fence_goes_no_further() -> None:
    driver = FiberDriver()
    first, second = driver.stream(), driver.stream()
    events = Events(driver, 4)
    driver.held.add(first)
    before = events.record(first, "before")
    before.hold(second)
    before.hold(first)
    after = events.record(second, "after")
    assert not after.done()
    driver.held.clear()
    assert after.wait(SECONDS) and before.done()


def test_threads_get_events_of_their_own() -> None:
    """Whoever brings weights is another thread than who computes: no event may be two fences'."""
    driver = FiberDriver()
    streams = [driver.stream() for _ in range(4)]
    driver.held.update(streams)
    events, fences = Events(driver, 1), [list[EventFence]() for _ in streams]

    def record(number: int) -> None:
        for _ in range(200):
            fences[number].append(events.record(streams[number], "work"))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(len(streams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    found = {fence.event.handle for own in fences for fence in own}
    assert len(found) == 200 * len(streams)


def test_vram_is_handed_out_once_and_given_back() -> None:
    driver = FiberDriver(1 << 20)
    with ExitStack() as stack:
        vram = Vram(driver, 10 * ALIGNMENT)
        vram.open(stack)
        spans = [vram.take(1), vram.take(ALIGNMENT + 1), vram.take(7 * ALIGNMENT)]
        assert [span.offset for span in spans] == [0, ALIGNMENT, 3 * ALIGNMENT]
        assert all(span.memory.kind is MemoryKind.VRAM and span.address % ALIGNMENT == 0 for span in spans)
        assert vram.left == 0 and driver.used == 10 * ALIGNMENT
        with pytest.raises(GpuOutOfMemory, match="0 are left"):
            vram.take(1)
    assert driver.used == 0


def test_vram_that_is_not_there_is_said_when_it_is_opened() -> None:
    driver = FiberDriver(1 << 20)
    with ExitStack() as stack, pytest.raises(GpuOutOfMemory):
        Vram(driver, 1 << 21).open(stack)
    assert driver.used == 0


def test_nobody_gets_less_than_nothing() -> None:
    """What is taken comes from a plan over a file's sizes: a fault there must not hand bytes out twice."""
    driver = FiberDriver(1 << 20)
    with ExitStack() as stack:
        vram = Vram(driver, 4 * ALIGNMENT)
        vram.open(stack)
        vram.take(2 * ALIGNMENT)
        with pytest.raises(ValueError, match="-256 bytes"):
            vram.take(-ALIGNMENT)
        assert vram.left == 2 * ALIGNMENT


def test_the_card_on_fibers_tells_who_wrote_behind_the_end() -> None:
    """What all tests of kernels rest on; a whole piece of 256 bytes behind the end, the process is ended."""
    driver = FiberDriver(1 << 20)
    address = driver.allocate(100)
    driver.fill(address, 0, 101, driver.stream())
    with pytest.raises(GpuFailed, match="behind the end of 100 bytes"):
        driver.free(address)
    assert driver.used == 0
