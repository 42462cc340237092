"""Does every backend keep the contract of `nvdma.backend.Backend`?"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvdma.types import Completion, Read, split
from unit.nvdma.rig import KINDS, MIB, PAGE, SECONDS, Rig, drain, pattern, read_in_turns


def test_the_bytes_of_a_file_arrive_where_they_were_asked_for(rig: Rig) -> None:
    data = pattern(4 * PAGE)
    source, arena = rig.file("model", {0: data}), rig.arena(8 * PAGE, canary=0xEE)
    backend = rig.backend([source], arena)
    backend.submit([Read(7, 0, PAGE, 2 * PAGE, 4 * PAGE)])
    assert backend.wait(SECONDS) == [Completion(7, 2 * PAGE)]
    untouched = b"\xee" * PAGE
    assert bytes(arena.view) == untouched * 4 + data[PAGE : 3 * PAGE] + untouched * 2


def test_many_reads_in_flight_each_bring_their_own_bytes(rig: Rig) -> None:
    data = pattern(64 * PAGE)
    source, arena = rig.file("model", {0: data}), rig.arena(64 * PAGE)
    backend = rig.backend([source], arena, depth=16)
    # Page n goes to place 63 - n: an exchanged completion or target would show.
    reads = [Read(n, 0, n * PAGE, PAGE, (63 - n) * PAGE) for n in range(64)]
    assert read_in_turns(backend, reads) == dict.fromkeys(range(64), PAGE)
    pages = [data[n * PAGE : (n + 1) * PAGE] for n in range(64)]
    assert bytes(arena.view) == b"".join(reversed(pages))


def test_a_long_and_a_short_read_complete_under_their_own_tags(rig: Rig) -> None:
    data = pattern(4 * MIB)
    source, arena = rig.file("model", {0: data}), rig.arena(5 * MIB)
    backend = rig.backend([source], arena)
    longest = min(4 * MIB, backend.facts.max_read)
    backend.submit([Read(1, 0, 0, longest, 0), Read(2, 0, PAGE, PAGE, 4 * MIB)])
    assert drain(backend) == ({1: longest, 2: PAGE}, [])
    assert arena.view[:longest] == data[:longest]
    assert arena.view[4 * MIB : 4 * MIB + PAGE] == data[PAGE : 2 * PAGE]


def test_poll_alone_brings_every_completion(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(8 * PAGE)}), rig.arena(8 * PAGE)
    backend = rig.backend([source], arena)
    backend.submit([Read(n, 0, n * PAGE, PAGE, n * PAGE) for n in range(8)])
    done: list[Completion] = []
    while backend.in_flight:
        done += backend.poll()
    assert sorted(done, key=lambda completion: completion.tag) == [Completion(n, PAGE) for n in range(8)]
    assert backend.poll() == []


def test_the_tail_of_a_file_of_any_size_arrives(rig: Rig) -> None:
    data = pattern(2 * PAGE + 777)
    source, arena = rig.file("model", {0: data}), rig.arena(4 * PAGE)
    backend = rig.backend([source], arena)
    backend.submit([Read(1, 0, 0, 4 * PAGE, 0)])
    assert backend.wait(SECONDS) == [Completion(1, len(data))]
    assert arena.view[: len(data)] == data


def test_a_read_of_the_last_unaligned_bytes_alone(rig: Rig) -> None:
    data = pattern(PAGE + 1)
    source, arena = rig.file("model", {0: data}), rig.arena(PAGE)
    backend = rig.backend([source], arena)
    backend.submit([Read(1, 0, PAGE, PAGE, 0)])
    assert backend.wait(SECONDS) == [Completion(1, 1)]
    assert arena.view[:1] == data[PAGE:]


def test_several_sources_do_not_mix(rig: Rig) -> None:
    shards = [pattern(4 * PAGE, seed) for seed in range(5)]
    sources = [rig.file(f"shard{n}", {0: data}) for n, data in enumerate(shards)]
    arena = rig.arena(20 * PAGE)
    backend = rig.backend(sources, arena, depth=5)
    backend.submit([Read(n, n, 0, 4 * PAGE, n * 4 * PAGE) for n in range(5)])
    assert drain(backend) == (dict.fromkeys(range(5), 4 * PAGE), [])
    assert bytes(arena.view) == b"".join(shards)


@pytest.mark.parametrize("offset", [(1 << 32) - PAGE, 1 << 32, (5 << 32) + PAGE])
def test_offsets_beyond_four_gib(rig: Rig, offset: int) -> None:
    data = pattern(2 * PAGE)
    source, arena = rig.file("big", {offset: data}), rig.arena(2 * PAGE)
    backend = rig.backend([source], arena)
    backend.submit([Read(1, 0, offset, 2 * PAGE, 0)])
    assert backend.wait(SECONDS) == [Completion(1, 2 * PAGE)]
    assert bytes(arena.view) == data


def test_after_close_no_byte_lands_in_the_arena(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(16 * MIB)}), rig.arena(18 * MIB, canary=0xA5)
    # A dirty file would be written back first, and its reads not be with the drive yet when close comes.
    os.fsync(source.fd)
    backend = rig.backend([source], arena, depth=16)
    backend.submit([Read(n, 0, n * MIB, MIB, (n + 1) * MIB) for n in range(16)])
    backend.close()
    assert backend.in_flight == 0
    after_close = bytes(arena.view)
    assert after_close[:MIB] == after_close[17 * MIB :] == b"\xa5" * MIB
    # Another backend reads the same file meanwhile: a late read of the first would have had its time.
    other = rig.arena(16 * MIB)
    later = rig.backend([source], other, depth=16)
    later.submit([Read(n, 0, n * MIB, MIB, n * MIB) for n in range(16)])
    assert drain(later) == (dict.fromkeys(range(16), MIB), [])
    assert bytes(arena.view) == after_close
    backend.close()


def test_a_backend_can_be_opened_again_after_close(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(2 * PAGE)}), rig.arena(2 * PAGE)
    backend = rig.backend([source], arena)
    backend.submit([Read(1, 0, 0, 2 * PAGE, 0)])
    backend.close()
    backend.open()
    assert backend.in_flight == 0 and backend.poll() == []
    backend.submit([Read(1, 0, 0, 2 * PAGE, 0)])
    assert backend.wait(SECONDS) == [Completion(1, 2 * PAGE)]


def test_closing_gives_every_descriptor_and_thread_back(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(2 * PAGE)}), rig.arena(2 * PAGE)
    before = sorted(os.listdir("/proc/self/fd")), threading.enumerate()
    for _ in range(3):
        backend = rig.closed_backend([source], arena)
        backend.open()
        backend.submit([Read(1, 0, 0, 2 * PAGE, 0)])
        backend.close()
    assert (sorted(os.listdir("/proc/self/fd")), threading.enumerate()) == before
    arena.close()


def test_a_read_split_at_max_read_brings_the_same_bytes(rig: Rig) -> None:
    data = pattern(10 * PAGE + 5)
    source, arena = rig.file("model", {0: data}), rig.arena(11 * PAGE)
    backend = rig.backend([source], arena, max_read=4 * PAGE)
    parts = split(Read(20, 0, 0, 11 * PAGE, 0), backend.facts.max_read)
    assert read_in_turns(backend, parts) == {20: 4 * PAGE, 21: 4 * PAGE, 22: 2 * PAGE + 5}
    assert arena.view[: len(data)] == data


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 40 * PAGE), min_size=1, max_size=3),
    picks=st.lists(st.tuples(st.integers(0), st.integers(0), st.integers(1, 8)), min_size=1, max_size=40),
    depth=st.integers(1, 12),
)
def test_any_aligned_reads_equal_the_file(
    kind: str, sizes: list[int], picks: list[tuple[int, int, int]], depth: int
) -> None:
    with ExitStack() as stack, TemporaryDirectory() as folder:
        rig = Rig(kind, Path(folder), stack)
        shards = [pattern(size, size) for size in sizes]
        sources = [rig.file(f"shard{n}", {0: data}) for n, data in enumerate(shards)]
        arena = rig.arena(len(picks) * 8 * PAGE)
        backend = rig.backend(sources, arena, depth)
        reads, wanted = [], {}
        for tag, (which, page, pages) in enumerate(picks):
            source = which % len(sources)
            offset = page % -(-sizes[source] // PAGE) * PAGE
            reads.append(Read(tag, source, offset, pages * PAGE, tag * 8 * PAGE))
            wanted[tag] = shards[source][offset : offset + pages * PAGE]
        assert read_in_turns(backend, reads) == {tag: len(data) for tag, data in wanted.items()}
        for tag, data in wanted.items():
            assert arena.view[tag * 8 * PAGE : tag * 8 * PAGE + len(data)] == data
