"""Is what a thread opens closed, also when nobody waits for it any more?"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import ExitStack

import pytest

from nvstreamd.errors import NotFound
from nvstreamd.supervisor.opening import opened

DEADLINE = 10.0


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def open_null(stack: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd


def test_what_was_opened_is_closed_by_the_stack() -> None:
    with ExitStack() as stack:
        fd = asyncio.run(opened(open_null, stack))
        assert is_open(fd)
    assert not is_open(fd)


def test_an_error_comes_through_and_nothing_stays_open() -> None:
    found: list[int] = []

    def work(stack: ExitStack) -> None:
        found.append(open_null(stack))
        raise NotFound("no drive", "build one in")

    with ExitStack() as stack, pytest.raises(NotFound):
        asyncio.run(opened(work, stack))
    assert not is_open(found[0])


def test_a_caller_who_leaves_keeps_no_drive_from_others() -> None:
    """A drive is opened for one alone: left open, no import would ever get it again."""
    begun, go_on = threading.Event(), threading.Event()
    found: list[int] = []

    def work(stack: ExitStack) -> None:
        begun.set()
        assert go_on.wait(DEADLINE), "the test never let it go on"
        found.append(open_null(stack))

    async def leave(stack: ExitStack) -> None:
        call = asyncio.create_task(opened(work, stack))
        assert await asyncio.to_thread(begun.wait, DEADLINE), "the thread did not begin"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()

    with ExitStack() as stack:
        asyncio.run(leave(stack))
        assert not is_open(found[0])
