"""Whom does an engine run as? Where the daemon is root: a uid that no other process has for as long as the engine runs.

A user's processes may end each other. So a range of uids that are nobody's (`engine_uids`) is lent, one uid an engine;
their group is `engine_user`'s. Imports run as `engine_user` itself: the store belongs to it.

Nothing outlives a loan. An engine that was taken over may have left a process behind, and so may an earlier daemon that
was killed. So everything that runs under a uid is ended before the uid is lent, and again when it comes back. The first
uid of the range is never lent: the process that ends the others runs under it. Under their own uid they could end that
process first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import sys
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TypedDict

from nvstreamd.config import EngineUids
from nvstreamd.errors import ConfigError, EngineLost, QuotaExceeded

log = logging.getLogger(__name__)

CLEAR_SECONDS = 10.0
# Run as root, with the uids of who ends and of whom it ends, and a gid. kill(-1) is one step for the kernel: no process
# starts another meanwhile. It reaches whom the effective uid may end; the real and the saved one keep it from being
# ended itself. ProcessLookupError: there was nobody.
CLEAR = """
import os, sys
who, whom, group = map(int, sys.argv[1:])
os.setgroups([])
os.setresgid(group, group, group)
os.setresuid(who, whom, who)
try:
    os.kill(-1, 9)
except ProcessLookupError:
    pass
"""
SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


class Identity(TypedDict, total=False):
    """Whom a child runs as; empty: as its parent."""

    user: int
    group: int
    extra_groups: list[int]


class Task(Enum):
    """The task that an engine is started for."""

    SERVE = auto()
    DESCRIBE = auto()
    IMPORT = auto()


@dataclass(frozen=True, slots=True)
class Loan:
    """An identity for one engine; `uid` is its own, if it has one."""

    identity: Identity
    task: Task
    uid: int | None = None


def identity_of(user: str | None) -> Identity:
    """The identity of an account, with no group but its own. Raises ConfigError when there is none."""
    if user is None:
        return {}
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"engine_user: there is no user {user!r}", "create it, or name another") from None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


class EngineUsers:
    """Lends identities: `user` is an account, `uids` a range that the account's engines are spread over."""

    def __init__(self, user: str | None = None, uids: EngineUids | None = None) -> None:
        self.user = user
        self._uids = uids
        lent = list(range(uids.first + 1, uids.first + uids.count)) if uids else []
        # Everybody may have files described. Those take turns at uids of their own: no other engine lacks one for it.
        looks = max(1, len(lent) // 4)
        self._free = {Task.DESCRIBE: deque(lent[:looks]), Task.SERVE: deque(lent[looks:])}
        self._turns = asyncio.Semaphore(looks)
        # Of two processes that end others at once, one would end the other: their real uid is the same.
        self._clearing = asyncio.Lock()
        self._returning: dict[asyncio.Task[None], asyncio.subprocess.Process] = {}

    def check(self) -> None:
        """Raises ConfigError when a uid of the range is somebody's already, or the daemon cannot become it."""
        if self._uids is None:
            return
        if os.getuid():
            raise ConfigError("engine_uids: only root can start processes of other users", "leave it out")
        span = range(self._uids.first, self._uids.first + self._uids.count)
        taken = next((f"uid {uid} is {name}'s" for uid in span if (name := _owner(uid))), None) or _subordinate(span)
        if taken:
            raise ConfigError(f"engine_uids: {taken}", "choose a range that is nobody's")

    @property
    def are_root(self) -> bool:
        """True when an engine may do anything."""
        return os.getuid() == 0 and self.user is None

    def notes(self) -> list[str]:
        """All that is to be known of whom engines run as, for `status`."""
        if os.getuid():
            return []
        if self.are_root:
            return ["the engine runs as root: name an unprivileged user in `engine_user`"]
        if self._uids is None:
            return [f"every process of {self.user} can end the engine: give engines uids of their own, `engine_uids`"]
        return []

    async def lend(self, task: Task) -> Loan:
        """An identity, to be given back with `give_back`, or with `take_back` when its engine has ended.

        Raises QuotaExceeded, ConfigError, or EngineLost when others may have that identity.
        """
        identity = identity_of(self.user)
        if self._uids is None or task is Task.IMPORT:
            return Loan(identity, task)
        if task is Task.DESCRIBE:
            await self._turns.acquire()
        uid = None
        try:
            uid = await self._next(self._free[task])
            await self._clear(uid, identity["group"])
        except BaseException:
            self.give_back(Loan(identity, task, uid))
            raise
        return Loan({**identity, "user": uid}, task, uid)

    async def _next(self, free: deque[int]) -> int:
        """The uid that has been free for longest; one that an engine has just left is waited for."""
        while not free:
            left = [returning for returning, engine in self._returning.items()
                    if engine.returncode is not None and not returning.done()]
            if not left:
                raise QuotaExceeded("every uid of `engine_uids` has an engine", "unload a model, or widen the range",
                                    field="engine_uids")
            await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        return free.popleft()

    def give_back(self, loan: Loan) -> None:
        """Takes back the loan of an engine that was not started."""
        if loan.uid is not None:
            self._free[loan.task].append(loan.uid)
        if self._uids is not None and loan.task is Task.DESCRIBE:
            self._turns.release()

    def take_back(self, loan: Loan, engine: asyncio.subprocess.Process) -> None:
        """Gives the identity back once the engine has ended, and whatever it left behind; nobody needs to wait."""
        if loan.uid is None:
            return
        returning = asyncio.get_running_loop().create_task(self._when_ended(loan, engine))
        self._returning[returning] = engine
        returning.add_done_callback(self._returning.pop)

    async def settle(self) -> None:
        """Waits until engines that have ended have nothing left behind; to be called when all have."""
        if self._returning:
            await asyncio.wait(self._returning, timeout=CLEAR_SECONDS)

    async def _when_ended(self, loan: Loan, engine: asyncio.subprocess.Process) -> None:
        await engine.wait()
        assert loan.uid is not None
        try:
            await self._clear(loan.uid, loan.identity["group"])
        except EngineLost as error:
            # It is tried again before the uid is lent.
            log.error("%s", error)
        finally:
            self.give_back(loan)

    async def _clear(self, uid: int, group: int) -> None:
        """Ends every process of `uid`. Raises EngineLost when that is not certain."""
        assert self._uids is not None
        async with self._clearing:
            await self._run_clear(self._uids.first, uid, group)

    async def _run_clear(self, who: int, uid: int, group: int) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", CLEAR, str(who), str(uid), str(group), env={}, cwd="/",
                stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            raise EngineLost(f"what runs as uid {uid} cannot be ended: {error}", "see the daemon's log") from error
        try:
            async with asyncio.timeout(CLEAR_SECONDS):
                status = await process.wait()
        except BaseException as error:
            process.kill()
            await asyncio.shield(process.wait())
            if isinstance(error, TimeoutError):
                raise EngineLost(f"what runs as uid {uid} was not ended within {CLEAR_SECONDS:g} s",
                                 "try again") from None
            raise
        if status:
            raise EngineLost(f"what runs as uid {uid} cannot be ended: status {status}", "see the daemon's log")


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _subordinate(span: range) -> str:
    """Whose user namespaces may have a uid of the range; empty when nobody's. subuid(5): name:first:count."""
    for path in SUBORDINATE:
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            name, *numbers = line.strip().split(":")
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                first, count = map(int, numbers)
                if first < span.stop and span.start < first + count:
                    return f"{path} gives {name} uids from {first} on"
    return ""
