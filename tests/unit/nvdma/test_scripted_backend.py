"""Does the scripted backend follow its script, so that tests above can rely on it?"""

from __future__ import annotations

import errno

import pytest

from nvdma.errors import DeadlineExceeded, ReadFailed, ShortRead
from nvdma.types import Completion, Read, Source
from support.scripted_backend import Ending, Image, Script, ScriptedBackend
from unit.nvdma.rig import SECONDS, Rig

PATH = "/models/m.gguf"
DATA = bytes(range(200))


def scripted(rig: Rig, script: Script) -> ScriptedBackend:
    """A backend over DATA that follows ``script``."""
    images = {PATH: Image(len(DATA), {0: DATA})}
    backend = ScriptedBackend(images, [Source(-1, PATH, len(DATA))], rig.arena(200), script=script)
    backend.open()
    return backend


def three(backend: ScriptedBackend) -> None:
    """Submit tags 0, 1, 2."""
    backend.submit([Read(tag, 0, tag * 50, 50, tag * 50) for tag in range(3)])


def test_newest_first_reverses_the_order(memory_rig: Rig) -> None:
    backend = scripted(memory_rig, Script(newest_first=True))
    three(backend)
    assert [completion.tag for completion in backend.poll()] == [2, 1, 0]


def test_a_delay_is_counted_in_polls(memory_rig: Rig) -> None:
    backend = scripted(memory_rig, Script({0: Ending(polls=2)}))
    three(backend)
    assert [[completion.tag for completion in backend.poll()] for _ in range(3)] == [[1, 2], [], [0]]


def test_a_read_that_never_ends_is_a_deadline_at_once(memory_rig: Rig) -> None:
    backend = scripted(memory_rig, Script({1: Ending(polls=None)}))
    three(backend)
    assert [completion.tag for completion in backend.wait(SECONDS)] == [0, 2]
    with pytest.raises(DeadlineExceeded, match=f"1 reads of backend memory.*tag 1.*{PATH}"):
        backend.wait(SECONDS)


def test_an_error_comes_in_its_turn(memory_rig: Rig) -> None:
    backend = scripted(memory_rig, Script({1: Ending(errno=errno.EIO)}))
    three(backend)
    assert backend.poll() == [Completion(0, 50)]
    with pytest.raises(ReadFailed, match="Input/output error"):
        backend.poll()
    assert backend.poll() == [Completion(2, 50)]


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_a_transient_error_is_tried_again(memory_rig: Rig, number: int) -> None:
    backend = scripted(memory_rig, Script({1: Ending(errno=number)}))
    three(backend)
    assert sorted(completion.tag for completion in backend.poll() + backend.wait(SECONDS)) == [0, 1, 2]
    assert backend.in_flight == 0


def test_a_partial_completion_is_continued(memory_rig: Rig) -> None:
    arena = memory_rig.arena(200)
    images = {PATH: Image(len(DATA), {0: DATA})}
    script = Script({0: Ending(cut=33)})
    backend = ScriptedBackend(images, [Source(-1, PATH, len(DATA))], arena, script=script)
    backend.submit([Read(0, 0, 0, 200, 0)])
    assert backend.poll() == []
    assert backend.poll() == [Completion(0, 200)]
    assert bytes(arena.view) == DATA


def test_a_read_cut_to_nothing_is_short(memory_rig: Rig) -> None:
    backend = scripted(memory_rig, Script({0: Ending(cut=0)}))
    three(backend)
    with pytest.raises(ShortRead, match="wanted 50 bytes at offset 0, got 0"):
        backend.poll()


def test_a_completion_off_the_alignment_is_the_end_of_the_file(memory_rig: Rig) -> None:
    # Direct I/O stops there only at the end; going on from there would be EINVAL, a wrong cause.
    images = {PATH: Image(len(DATA), {0: DATA})}
    script = Script({0: Ending(cut=150)})
    sources, arena = [Source(-1, PATH, len(DATA))], memory_rig.arena(200)
    backend = ScriptedBackend(images, sources, arena, alignment=100, script=script)
    backend.submit([Read(0, 0, 0, 200, 0)])
    with pytest.raises(ShortRead, match="wanted 200 bytes at offset 0, got 150"):
        backend.poll()
