"""What do model files that are not loaded need? Each is looked at once, however many ask, and few at a time."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from nvstreamd.errors import DeadlinePassed, NotFound, NvstreamError, from_wire
from nvstreamd.supervisor.known import ModelFacts

# Each is a process of some 100 MiB.
MOST_AT_ONCE = 2
SECONDS = 60.0
MOST_KNOWN = 256
# A file may be refused for want of another: it is looked at again after a while.
REFUSAL_SECONDS = 10.0

T = TypeVar("T")

# Which bytes were looked at: path and, of a plain file, inode, size and time of the last change of that.
Key = tuple[str, int, int, int]


class Descriptions:
    """ModelFacts by file. `look` looks into one; its facts hold until the file changes, its refusals for a while.

    Of a link, or a packed model, nothing is kept: what they lead to has rights of its own, which may change.
    """

    def __init__(self, look: Callable[[Path], Awaitable[ModelFacts]]) -> None:
        self._look = look
        self._facts: OrderedDict[Key, ModelFacts] = OrderedDict()
        self._refusals: OrderedDict[Key, tuple[float, NvstreamError]] = OrderedDict()
        self._looking: dict[Key, asyncio.Task[ModelFacts]] = {}
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)

    async def of(self, path: Path) -> ModelFacts:
        """The facts of a model. Raises NvstreamError. Who stops waiting does not stop it for the others."""
        key, is_plain = _key(path)
        if key in self._facts:
            return self._facts[key]
        since, error = self._refusals.get(key, (0.0, None))
        if error is not None and time.monotonic() - since < REFUSAL_SECONDS:
            raise from_wire(error.status, error.message, error.hint, error.field)
        if key not in self._looking:
            self._looking[key] = task = asyncio.create_task(self._find(path))
            task.add_done_callback(lambda done: self._over(key, is_plain, done))
        return await asyncio.shield(self._looking[key])

    def _over(self, key: Key, is_plain: bool, looking: asyncio.Task[ModelFacts]) -> None:
        del self._looking[key]
        error = asyncio.CancelledError() if looking.cancelled() else looking.exception()
        if is_plain and error is None:
            _keep(self._facts, key, looking.result())
        elif is_plain and isinstance(error, NvstreamError):
            _keep(self._refusals, key, (time.monotonic(), error))

    async def _find(self, path: Path) -> ModelFacts:
        async with self._turns:
            try:
                async with asyncio.timeout(SECONDS):
                    return await self._look(path)
            except TimeoutError:
                raise DeadlinePassed(f"{path}: looking into it took more than {SECONDS:g} s",
                                     "look at the drive that it is on") from None


def _keep(where: OrderedDict[Key, T], key: Key, what: T) -> None:
    where[key] = what
    if len(where) > MOST_KNOWN:
        where.popitem(last=False)


def _key(path: Path) -> tuple[Key, bool]:
    """The key, and whether it is of a plain file. A link is not followed: its target may be none of the caller's."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}", "look whether it is still there", field="model") from error
    if not stat.S_ISREG(found.st_mode):
        return (str(path), 0, 0, 0), False
    return (str(path), found.st_ino, found.st_size, found.st_ctime_ns), True
