"""Does every backend's bookkeeping admit all or none of a batch, and hand outcomes out in the order they came?"""

from __future__ import annotations

import errno

import pytest

from nvdma.errors import InvalidRead, QueueFull, ReadFailed
from nvdma.ledger import Ledger
from nvdma.types import BackendFacts, Completion, Read, Source

PAGE = 4096
DEPTH = 8


@pytest.fixture
def ledger() -> Ledger:
    """Of a backend that wants pages, over two files: one of 16 pages, one that ends within its second page."""
    facts = BackendFacts("test", DEPTH, 4 * PAGE, PAGE, True, True)
    return Ledger(facts, [Source(-1, "long", 16 * PAGE), Source(-1, "short", PAGE + 5)], 16 * PAGE)


def reads(*tags: int) -> list[Read]:
    """Of a page each, to places of their own."""
    return [Read(tag, 0, tag * PAGE, PAGE, tag * PAGE) for tag in tags]


def handed_out(ledger: Ledger) -> list[int | None]:
    """Tags as a caller gets them, those of errors negated."""
    tags: list[int | None] = []
    while ledger.has_outcomes:
        try:
            tags += [completion.tag for completion in ledger.take()]
        except ReadFailed as error:
            tags.append(None if error.tag is None else -error.tag)
    return tags


def test_outcomes_are_handed_out_in_the_order_they_came(ledger: Ledger) -> None:
    pendings = ledger.admit(reads(*range(1, 8)))
    ledger.arrived(pendings[:2])
    ledger.landed(3, -errno.EIO)
    ledger.landed(4, PAGE)
    ledger.arrived(pendings[4:5])
    ledger.landed(6, -errno.EIO)
    assert (ledger.in_flight, ledger.outstanding) == (7, 1)
    ledger.arrived(pendings[6:])
    assert handed_out(ledger) == [1, 2, -3, 4, 5, -6, 7]
    assert ledger.in_flight == 0


def test_outcomes_that_come_between_two_calls_follow_those_before(ledger: Ledger) -> None:
    first, *others = ledger.admit(reads(1, 2, 3, 4))
    ledger.arrived([first])
    ledger.landed(2, -errno.EIO)
    assert ledger.take() == [Completion(1, PAGE)]
    ledger.arrived(others[1:2])
    with pytest.raises(ReadFailed):
        ledger.take()
    ledger.arrived(others[2:])
    assert ledger.take() == [Completion(3, PAGE), Completion(4, PAGE)]
    assert (ledger.take(), ledger.in_flight) == ([], 0)


@pytest.mark.parametrize("wrong", [
    Read(9, 2, 0, PAGE, 0), Read(9, -1, 0, PAGE, 0), Read(9, 0, -PAGE, PAGE, 0), Read(9, 0, 16 * PAGE, PAGE, 0),
    Read(9, 0, 0, 0, 0), Read(9, 0, 0, 5 * PAGE, 0), Read(9, 0, 0, PAGE, -PAGE), Read(9, 0, 0, 2 * PAGE, 15 * PAGE),
    Read(9, 0, 1, PAGE, 0), Read(9, 0, 0, PAGE + 512, 0), Read(9, 0, 0, PAGE, 8), Read(-1, 0, 0, PAGE, 0),
    Read(1 << 64, 0, 0, PAGE, 0), Read(3, 0, 0, PAGE, 0)])
def test_one_wrong_read_admits_none_of_its_batch(ledger: Ledger, wrong: Read) -> None:
    with pytest.raises(InvalidRead):
        ledger.admit([*reads(2, 3), wrong])
    assert ledger.in_flight == 0
    ledger.admit(reads(2, 3))


def test_a_tag_is_in_use_until_its_outcome_was_handed_out(ledger: Ledger) -> None:
    pendings = ledger.admit(reads(1, 2, 3, 4))
    ledger.arrived(pendings[:1])
    ledger.landed(2, -errno.EIO)
    ledger.arrived(pendings[2:3])
    for tag in (1, 2, 3, 4):
        with pytest.raises(InvalidRead, match=f"tag {tag} is in flight"):
            ledger.admit(reads(tag))
    assert handed_out(ledger) == [1, -2, 3]
    ledger.admit(reads(1, 2, 3))


def test_outcomes_not_handed_out_count_against_the_depth(ledger: Ledger) -> None:
    pendings = ledger.admit(reads(*range(5)))
    ledger.landed(0, -errno.EIO)
    ledger.arrived(pendings[1:3])
    with pytest.raises(QueueFull, match="depth 8: 5 reads in flight and 4 more"):
        ledger.admit(reads(5, 6, 7, 8))
    ledger.admit(reads(5, 6, 7))


def test_a_read_expects_what_its_file_has_left(ledger: Ledger) -> None:
    pendings = ledger.admit([Read(1, 1, 0, 4 * PAGE, 0), Read(2, 1, PAGE, PAGE, 0), Read(3, 0, 0, 4 * PAGE, 0)])
    assert [pending.expected for pending in pendings] == [PAGE + 5, 5, 4 * PAGE]
    ledger.arrived(pendings)
    assert ledger.take() == [Completion(1, PAGE + 5), Completion(2, 5), Completion(3, 4 * PAGE)]
