"""Does every backend refuse what it must, and say what failed, so that the reads beside it stay valid?"""

from __future__ import annotations

import errno
import os

import pytest

from nvdma.errors import DeadlineExceeded, InvalidRead, NothingInFlight, QueueFull, ReadFailed, ShortRead
from nvdma.types import Completion, Read, Source
from unit.nvdma.rig import MIB, PAGE, SECONDS, Rig, drain, pattern


def test_a_submission_beyond_the_depth_is_refused_whole(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(8 * PAGE)}), rig.arena(8 * PAGE)
    backend = rig.backend([source], arena, depth=3)
    backend.submit([Read(1, 0, 0, PAGE, 0), Read(2, 0, 0, PAGE, PAGE)])
    with pytest.raises(QueueFull, match=r"depth 3: 2 reads in flight and 2 more.*larger depth"):
        backend.submit([Read(3, 0, 0, PAGE, 0), Read(4, 0, 0, PAGE, PAGE)])
    assert drain(backend) == ({1: PAGE, 2: PAGE}, [])
    backend.submit([Read(tag, 0, 0, PAGE, tag * PAGE) for tag in (3, 4, 5)])
    assert drain(backend) == (dict.fromkeys((3, 4, 5), PAGE), [])


@pytest.mark.parametrize("left", [0, PAGE, PAGE + 100, 2 * PAGE])
def test_a_file_truncated_while_in_use_is_reported_with_the_remedy(file_rig: Rig, left: int) -> None:
    source, arena = file_rig.file("model", {0: pattern(4 * PAGE)}), file_rig.arena(8 * PAGE)
    backend = file_rig.backend([source], arena)
    file_rig.truncate(source, left)
    backend.submit([Read(5, 0, 0, 4 * PAGE, 0)])
    with pytest.raises(ShortRead, match="truncated or changed") as caught:
        backend.wait(SECONDS)
    error = caught.value
    assert (error.path, error.tag, error.offset, error.wanted, error.got) == (
        source.path,
        5,
        0,
        4 * PAGE,
        left,
    )
    assert backend.in_flight == 0


def test_one_failed_read_leaves_the_others_valid(file_rig: Rig) -> None:
    data = pattern(4 * PAGE)
    good = file_rig.file("good", {0: data})
    # The kernel itself refuses an end beyond 2**63: a file that claims such a size makes a real errno.
    bad = Source(file_rig.file("bad", {0: data}).fd, good.path, 1 << 63)
    arena = file_rig.arena(8 * PAGE)
    backend = file_rig.backend([good, bad], arena, failing=[2])
    backend.submit(
        [
            Read(1, 0, 0, PAGE, 0),
            Read(2, 1, (1 << 63) - PAGE, 2 * PAGE, 6 * PAGE),
            Read(3, 0, PAGE, PAGE, PAGE),
        ]
    )
    done, errors = drain(backend)
    assert done == {1: PAGE, 3: PAGE}
    assert arena.view[: 2 * PAGE] == data[: 2 * PAGE]
    (error,) = errors
    assert isinstance(error, ReadFailed)
    assert (error.tag, error.errno, error.offset) == (2, errno.EINVAL, (1 << 63) - PAGE)
    assert "Invalid argument" in str(error) and bad.path in str(error)
    backend.submit([Read(4, 0, 0, PAGE, 0)])
    assert backend.wait(SECONDS) == [Completion(4, PAGE)]


def test_a_closed_descriptor_is_an_error_at_open_not_a_crash_later(file_rig: Rig) -> None:
    source, arena = file_rig.file("model", {0: pattern(PAGE)}), file_rig.arena(PAGE)
    duplicate = os.dup(source.fd)
    os.close(duplicate)
    backend = file_rig.closed_backend([Source(duplicate, "/gone", PAGE)], arena)
    with pytest.raises(ReadFailed, match=r"/gone.*Bad file descriptor") as caught:
        backend.open()
    assert caught.value.errno == errno.EBADF
    backend.close()


def test_a_missed_deadline_names_what_was_waited_for(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(8 * MIB)}), rig.arena(8 * MIB)
    backend = rig.backend([source], arena, endless=range(8))
    message = ""
    # A drive may be faster than one wait of 0 s; it is not a hundred times in a row.
    for _ in range(100):
        backend.submit([Read(n, 0, n * MIB, MIB, n * MIB) for n in range(8)])
        try:
            backend.wait(0.0)
        except DeadlineExceeded as error:
            message = str(error)
            break
        assert drain(backend)[1] == []
    assert f"reads of backend {backend.facts.name}" in message
    assert f"{MIB} bytes at offset" in message and source.path in message
    assert "waited 0 s" in message and "dmesg" in message


def test_waiting_for_nothing_is_an_error_and_not_a_hang(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(PAGE)}), rig.arena(PAGE)
    backend = rig.backend([source], arena)
    with pytest.raises(NothingInFlight, match="submit a read first"):
        backend.wait(SECONDS)


@pytest.mark.parametrize(
    ("read", "field"),
    [
        (Read(1, 1, 0, PAGE, 0), "source 1"),
        (Read(1, 0, 4 * PAGE, PAGE, 0), f"offset {4 * PAGE}"),
        (Read(1, 0, -PAGE, PAGE, 0), f"offset {-PAGE}"),
        (Read(1, 0, 0, 0, 0), "length 0"),
        (Read(1, 0, 0, 4 * PAGE, 0), f"length {4 * PAGE}"),
        (Read(1, 0, 0, 2 * PAGE, PAGE), f"target {PAGE}"),
        (Read(1, 0, 0, PAGE, -PAGE), f"target {-PAGE}"),
        (Read(-1, 0, 0, PAGE, 0), "tag -1"),
        (Read(1 << 64, 0, 0, PAGE, 0), f"tag {1 << 64}"),
    ],
)
def test_a_read_outside_its_bounds_never_reaches_the_kernel(rig: Rig, read: Read, field: str) -> None:
    source, arena = rig.file("model", {0: pattern(4 * PAGE)}), rig.arena(2 * PAGE)
    backend = rig.backend([source], arena, max_read=2 * PAGE)
    with pytest.raises(InvalidRead, match=field):
        backend.submit([Read(9, 0, 0, PAGE, 0), read])
    assert backend.in_flight == 0


def test_a_tag_in_flight_cannot_be_used_twice(rig: Rig) -> None:
    source, arena = rig.file("model", {0: pattern(4 * PAGE)}), rig.arena(2 * PAGE)
    backend = rig.backend([source], arena)
    with pytest.raises(InvalidRead, match="tag 3 is in flight"):
        backend.submit([Read(3, 0, 0, PAGE, 0), Read(3, 0, 0, PAGE, PAGE)])
    backend.submit([Read(3, 0, 0, PAGE, 0)])
    with pytest.raises(InvalidRead, match="tag 3 is in flight"):
        backend.submit([Read(3, 0, 0, PAGE, PAGE)])
    assert drain(backend) == ({3: PAGE}, [])
