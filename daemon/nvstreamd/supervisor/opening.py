"""How does the daemon open a model's files and drives, without holding up everybody while it looks at a machine?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, TypeVar

from nvstreamd.supervisor.rights import open_as_uid
from nvstreamd.weights.packed.drive_files import Drives, open_files
from nvstreamd.weights.packed.files import OpenFile, open_all, parts_of
from nvstreamd.weights.packed.store import SUFFIX, files_of

T = TypeVar("T")


def open_model(path: Path, drives: Drives, stack: ExitStack) -> list[OpenFile]:
    """All files of the model at `path`: GGUF parts, or what a packed directory consists of, parts on drives too.

    `stack` closes them. Raises NvstreamError.
    """
    if path.suffix == SUFFIX:
        return open_files(files_of(path), drives, stack, open_as_uid)
    return open_all(parts_of(path), stack, open_as_uid)


async def opened(work: Callable[[ExitStack], T], stack: ExitStack) -> T:
    """The result of `work`, from a thread; `stack` closes what it opened. Raises what `work` raises.

    Who is cancelled does not wait: what is opened after that is closed at once.
    """
    opening = _Opening(work)
    try:
        found = await asyncio.to_thread(opening.run)
    except asyncio.CancelledError:
        opening.leave()
        raise
    stack.callback(opening.leave)
    return found


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, from a thread. The work is done in any case, also when nobody waits for it any more."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, work))


class _Opening(Generic[T]):
    """The result of one thread that opens, closed by whoever waited for it, or does not any more."""

    def __init__(self, work: Callable[[ExitStack], T]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._is_left = False
        self._kept = ExitStack()

    def run(self) -> T:
        """In the thread."""
        with ExitStack() as own:
            found = self._work(own)
            with self._lock:
                if not self._is_left:
                    self._kept = own.pop_all()
            return found

    def leave(self) -> None:
        """Closes what is open, and lets nothing stay open that is opened later."""
        with self._lock:
            self._is_left = True
        self._kept.close()
