"""What do streams meet when a drive of ours misbehaves? A named error, the other reads, memory that stays theirs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from nvdma.arena import Arena
from nvdma.backends.nvme import BYTES_A_LIST, Destination, NvmeBackend, OnDrive
from nvdma.errors import (
    BackendUnavailable,
    CommandRefused,
    ControllerFatal,
    DeadlineExceeded,
    DeviceGone,
    DmaError,
    UnknownCompletion,
)
from nvdma.nvme.drive import Drive
from nvdma.pci.dma import BusAddresses, Scattered
from nvdma.types import Read, Source
from support.nvme_access import ScriptedAccess
from support.nvme_device import ScriptedDevice
from support.nvme_firmware import Image, Model
from support.nvme_rig import content
from support.nvme_script import Effect, Rule

PAGE = 4096
READ = 0x02
DEPTH = 8
SECONDS = 0.2
UNRECOVERED_READ = 0x281  # status code type 2, code 81h


@dataclass(slots=True)
class Bench:
    """A backend over scripted drives, each with a source of its own behind a page of somebody else's."""

    devices: list[ScriptedDevice]
    accesses: list[ScriptedAccess]
    arena: Arena
    backend: NvmeBackend

    def reads(self, count: int, source: int = 0) -> list[Read]:
        """Page by page, each to its own place."""
        return [Read(tag, source, tag * PAGE, PAGE, tag * PAGE) for tag in range(count)]


def bench(stack: ExitStack, models: list[Model], block: int = 512, nbytes: int = 64 * PAGE,
          arena_bytes: int = 64 * PAGE, target: Destination | None = None) -> Bench:
    """Closed yet."""
    devices = [ScriptedDevice({1: Image(bytearray(content(nbytes, seed)), block)}, model)
               for seed, model in enumerate(models)]
    accesses = [ScriptedAccess(device) for device in devices]
    arena = stack.enter_context(Arena(arena_bytes))
    drives = [Drive(access, f"nvme{number}", DEPTH) for number, access in enumerate(accesses)]
    sources = [Source(-1, f"part-{number}", 32 * PAGE) for number in range(len(models))]
    places = [OnDrive(number, 1, PAGE) for number in range(len(models))]
    return Bench(devices, accesses, arena, NvmeBackend("nvme_host", drives, places, sources, arena, target=target))


@pytest.fixture
def opened() -> Iterator[Bench]:
    """One drive, open; closed and found clean afterwards."""
    with ExitStack() as stack:
        made = bench(stack, [Model()])
        made.backend.open()
        yield made
        made.backend.close()
        assert not made.accesses[0].masters
        assert made.devices[0].violations == [] and made.devices[0].bus.faults == []


def outcome(made: Bench) -> tuple[list[int], list[DmaError]]:
    """Tags that arrived, and errors of single reads."""
    tags: list[int] = []
    errors: list[DmaError] = []
    while made.backend.in_flight:
        try:
            tags += [completion.tag for completion in made.backend.wait(SECONDS)]
        except CommandRefused as error:
            errors.append(error)
    return tags, errors


def test_a_block_that_cannot_be_read_is_named_and_the_others_arrive(opened: Bench) -> None:
    opened.devices[0].script.rules.append(Rule(Effect.FAIL, READ, status=UNRECOVERED_READ))
    opened.backend.submit(opened.reads(4))
    tags, errors = outcome(opened)
    assert tags == [1, 2, 3]
    (error,) = errors
    assert isinstance(error, CommandRefused)
    assert (error.tag, error.path, error.offset, error.cause.lba) == (0, "part-0", 0, PAGE // 512)
    assert "Unrecovered Read Error" in str(error) and "LBA 8" in str(error) and "health" in str(error)
    opened.backend.submit(opened.reads(1))
    assert outcome(opened) == ([0], [])


def test_a_completion_that_never_comes_is_a_deadline_that_names_the_read(opened: Bench) -> None:
    opened.devices[0].script.rules.append(Rule(Effect.LOSE, READ))
    opened.backend.submit(opened.reads(1))
    with pytest.raises(DeadlineExceeded, match=r"1 reads of backend nvme_host .* of part-0"):
        opened.backend.wait(SECONDS)


@pytest.mark.parametrize(("effect", "error"), [
    (Effect.DUPLICATE, UnknownCompletion), (Effect.FATAL, ControllerFatal), (Effect.VANISH, DeviceGone)])
def test_a_drive_that_cannot_go_on_says_so(opened: Bench, effect: Effect, error: type[DmaError]) -> None:
    opened.devices[0].script.rules.append(Rule(effect, READ))
    opened.backend.submit(opened.reads(4))
    with pytest.raises(error):
        while opened.backend.in_flight:
            opened.backend.wait(SECONDS)


def test_a_controller_that_does_not_stop_is_reset_before_memory_is_given_back(opened: Bench) -> None:
    """ScriptedAccess fails when memory is taken from a controller that runs."""
    opened.devices[0].script.manual = True
    opened.backend.submit(opened.reads(4))
    opened.devices[0].script.stuck_disable = True
    opened.backend.close()
    assert opened.accesses[0].resets == 1
    opened.devices[0].script.stuck_disable = False
    opened.devices[0].script.manual = False
    opened.devices[0].step()
    assert not any(opened.arena.view)


def test_a_controller_that_does_not_start_is_refused_with_its_reason() -> None:
    with ExitStack() as stack:
        made = bench(stack, [Model()])
        made.devices[0].script.stuck_enable = True
        with pytest.raises(BackendUnavailable, match=r"nvme0: CSTS\.RDY to become 1"):
            made.backend.open()
        assert made.accesses[0].resets == 1 and not made.accesses[0].masters
        made.arena.close()


def test_a_namespace_that_is_too_short_is_refused() -> None:
    with ExitStack() as stack:
        made = bench(stack, [Model()], nbytes=32 * PAGE)
        with pytest.raises(BackendUnavailable, match=r"part-0: bytes 4096 to 135168 are not on a namespace of 131072"):
            made.backend.open()


@pytest.mark.parametrize(("model", "block"), [
    (Model(), 512), (Model(), 4096), (Model(dstrd=3), 512), (Model(mdts=0), 512), (Model(mdts=1), 4096),
    (Model(mqes=DEPTH), 512), (Model(sgls=1), 512), (Model(sgls=2), 4096)])
def test_bytes_are_right_on_controllers_of_all_makes(model: Model, block: int) -> None:
    with ExitStack() as stack:
        made = bench(stack, [model], block)
        made.backend.open()
        stack.callback(made.backend.close)
        made.backend.submit(made.reads(DEPTH))
        assert sorted(outcome(made)[0]) == list(range(DEPTH))
        assert made.arena.view[: DEPTH * PAGE] == content(64 * PAGE, 0)[PAGE : (DEPTH + 1) * PAGE]
        assert made.devices[0].violations == [] and made.devices[0].bus.faults == []


def test_pages_that_lie_apart_are_listed_for_a_controller_that_takes_descriptors() -> None:
    with ExitStack() as stack:

        def backwards(drive: Drive, inner: ExitStack) -> BusAddresses:
            mapped = drive.access.map_memory(made.arena.view, made.arena.address, inner).bus
            return Scattered(mapped.pages(0, made.arena.nbytes)[::-1].copy())

        made = bench(stack, [Model(sgls=1)], target=backwards)
        made.backend.open()
        stack.callback(made.backend.close)
        made.backend.submit([Read(0, 0, 0, 4 * PAGE, 0)])
        assert outcome(made) == ([0], [])
        pages = [bytes(made.arena.view[at : at + PAGE]) for at in range(63 * PAGE, 59 * PAGE, -PAGE)]
        assert b"".join(pages) == content(64 * PAGE, 0)[PAGE : 5 * PAGE]
        assert made.devices[0].violations == [] and made.devices[0].bus.faults == []


def test_a_model_striped_over_drives_is_read_from_each() -> None:
    with ExitStack() as stack:
        made = bench(stack, [Model(), Model(dstrd=1), Model(mdts=2)])
        made.backend.open()
        stack.callback(made.backend.close)
        assert made.backend.facts.max_read == 4 * PAGE
        made.backend.submit([Read(number, number, 0, 2 * PAGE, number * 2 * PAGE) for number in range(3)])
        assert sorted(outcome(made)[0]) == [0, 1, 2]
        wanted = b"".join(content(64 * PAGE, seed)[PAGE : 3 * PAGE] for seed in range(3))
        assert made.arena.view[: 6 * PAGE] == wanted


def test_striped_drives_have_their_queues_full_at_once() -> None:
    """Four drives were held to one's depth together: each had a quarter of its commands under way."""
    with ExitStack() as stack:
        made = bench(stack, [Model()] * 4, arena_bytes=4 * DEPTH * PAGE)
        made.backend.open()
        stack.callback(made.backend.close)
        assert made.backend.facts.depth == 4 * DEPTH
        made.backend.submit([Read(tag, tag % 4, tag // 4 * PAGE, PAGE, tag * PAGE) for tag in range(4 * DEPTH)])
        # These drives carry out what they are told of at once: before anybody waits, all of it is there.
        for tag in range(4 * DEPTH):
            wanted = content(64 * PAGE, tag % 4)[(1 + tag // 4) * PAGE :][:PAGE]
            assert bytes(made.arena.view[tag * PAGE :][:PAGE]) == wanted, tag
        assert sorted(outcome(made)[0]) == list(range(4 * DEPTH))


def test_reads_that_one_drive_has_no_room_for_wait_for_it() -> None:
    """A cut that is uneven, as of a last stripe: all of a batch on one drive, and more than its queue takes."""
    with ExitStack() as stack:
        made = bench(stack, [Model()] * 2)
        made.backend.open()
        stack.callback(made.backend.close)
        made.devices[0].script.rules.append(Rule(Effect.FAIL, READ, status=UNRECOVERED_READ))
        made.backend.submit([Read(tag, 0, tag * PAGE, PAGE, tag * PAGE) for tag in range(2 * DEPTH)])
        tags, errors = outcome(made)
        assert sorted(tags) == list(range(1, 2 * DEPTH)) and len(errors) == 1
        wanted = content(64 * PAGE, 0)[2 * PAGE : (2 * DEPTH + 1) * PAGE]
        assert bytes(made.arena.view[PAGE : 2 * DEPTH * PAGE]) == wanted
        assert all(device.violations == [] and device.bus.faults == [] for device in made.devices)


def test_one_doorbell_a_batch(opened: Bench) -> None:
    before = opened.devices[0].accesses
    opened.backend.submit(opened.reads(DEPTH))
    assert opened.devices[0].accesses == before + 1


def test_what_completes_at_once_is_handed_out_in_parts_so_that_commands_follow_early(opened: Bench) -> None:
    opened.backend.submit(opened.reads(DEPTH))
    first = [completion.tag for completion in opened.backend.wait(SECONDS)]
    assert first == list(range(DEPTH // 2))
    opened.backend.submit(opened.reads(2))
    assert [completion.tag for completion in opened.backend.poll()] == [*range(DEPTH // 2, DEPTH), 0, 1]


def test_commands_into_places_seen_before_bring_what_is_asked_for_now() -> None:
    """Lists are kept for some places only: three here, and others beside them."""
    with ExitStack() as stack:
        made = bench(stack, [Model()], arena_bytes=3 * BYTES_A_LIST)
        made.backend.open()
        stack.callback(made.backend.close)
        draw, pages = random.Random(3), content(64 * PAGE, 0)[PAGE:]
        places = [(slot * 8, length) for slot in range(DEPTH) for length in (1, 2, 3, 8)]
        for tag in range(200):
            reads = [Read(tag * DEPTH + number, 0, draw.randrange(24) * PAGE, length * PAGE, at * PAGE)
                     for number, (at, length) in enumerate(draw.sample(places, DEPTH // 2))]
            reads = list({read.target: read for read in reads}.values())
            made.backend.submit(reads)
            while made.backend.in_flight:
                made.backend.wait(SECONDS)
            for read in reads:
                found = bytes(made.arena.view[read.target : read.target + read.length])
                assert found == pages[read.offset : read.offset + read.length], read
        assert made.devices[0].violations == [] and made.devices[0].bus.faults == []
