"""How is an engine process started, spoken to and ended?"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from nvstreamd import trace
from nvstreamd.errors import ConfigError, EngineLost, NvstreamError, ProtocolError
from nvstreamd.memory import kills, smallest
from nvstreamd.sizes import mib
from nvstreamd.supervisor.commands import Command
from nvstreamd.supervisor.engine_uids import EngineUsers, Loan, Task
from nvstreamd.supervisor.from_engine import parsed
from nvstreamd.supervisor.reports import Beat, Report
from nvstreamd.supervisor.to_engine import framed
from nvstreamd.supervisor.watch import Watch
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.wire.frames import HEADER, length_of

END_SECONDS = 10.0
VARIABLES = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "JOURNAL_STREAM")
# Locale, Python, our own, and how many threads a library of mathematics takes.
PREFIXES = ("LC_", "PYTHON", "NVSTREAM_", "OMP_", "MKL_", "OPENBLAS_")
NOWHERE = "/nonexistent"


def environment_of(daemon: Mapping[str, str]) -> dict[str, str]:
    """The daemon's variables that an engine needs to find its code and run it. The rest may be root's secrets."""
    kept = {name: value for name, value in daemon.items() if name in VARIABLES or name.startswith(PREFIXES)}
    # It does not run where the daemon does.
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
    if kept.get(trace.VARIABLE):
        kept[trace.VARIABLE] = os.path.abspath(kept[trace.VARIABLE])
    # Packages that a user installed for himself lie there; without an account there is none.
    return kept | {"HOME": daemon.get("HOME", NOWHERE) if os.getuid() else NOWHERE}


class EngineProcess:
    """A child that computes, without privilege: no capabilities, whom `users` lends when the daemon is root."""

    def __init__(self, users: EngineUsers, task: Task) -> None:
        self.users = users
        self.task = task
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._kills_before = kills()
        self.watch = Watch()
        self.why_killed = ""

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self, command: Command, files: Sequence[OpenFile], more: Sequence[int] = ()) -> None:
        """Starts the child and gives it its first command, the files' descriptors and then `more` beside it."""
        ours, theirs = socket.socketpair()
        with theirs:
            await self._spawn(theirs.fileno())
        message = framed(command)
        try:
            # The child reads at once and the message is small: this cannot block for long.
            sent = socket.send_fds(ours, [message], [*(file.fd for file in files if file.fd >= 0), *more])
            ours.sendall(message[sent:])
        except OSError as error:
            ours.close()
            raise await self._lost() from error
        ours.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)

    async def _spawn(self, channel: int) -> None:
        loan = await self.users.lend(self.task)
        try:
            self._process = await self._spawn_as(loan, channel)
        except BaseException as error:
            self.users.give_back(loan)
            if not isinstance(error, OSError):
                raise
            raise ConfigError(f"the engine cannot be started as {loan.identity.get('user', 'this user')}: {error}",
                              "`engine_user` needs the right to execute the daemon's Python") from error
        self.users.take_back(loan, self._process)

    async def _spawn_as(self, loan: Loan, channel: int) -> asyncio.subprocess.Process:
        # -P: nothing is imported from the directory that it starts in.
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "nvstreamd.engine", "--channel", str(channel), pass_fds=[channel],
            stdin=asyncio.subprocess.DEVNULL, start_new_session=True, cwd="/", env=environment_of(os.environ),
            **loan.identity,
        )

    def send(self, command: Command) -> None:
        """Queues a command; a dead engine swallows it (its end shows in `receive`)."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(framed(command))

    async def receive(self) -> Report:
        """The next report; signs of life go to `watch`.

        Raises EngineLost when the engine has ended, however it did, or is ended for what it said.
        """
        assert self._reader is not None
        while True:
            try:
                header = await self._reader.readexactly(HEADER.size)
                report = parsed(await self._reader.readexactly(length_of(header)))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise await self._lost() from error
            except ProtocolError as error:
                raise await self.condemned(error) from error
            beat = report if isinstance(report, Beat) else None
            self.watch.heard(beat)
            if beat is None:
                return report

    async def condemned(self, error: NvstreamError) -> EngineLost:
        """Ends the engine for an error that is its own, and says so: it parses hostile files, and may say anything."""
        why = f"it reported {error}" if isinstance(error, ProtocolError) else error.message
        self.kill(why)
        # It may have ended by itself after that.
        self.why_killed = why
        return await self._lost()

    async def _lost(self) -> EngineLost:
        """Says how the engine ended, and sees to it that it does: it may close its channel and stay."""
        assert self._process is not None
        try:
            async with asyncio.timeout(END_SECONDS):
                status = await self._process.wait()
        except TimeoutError:
            self.kill("it closed its channel and stayed")
            status = await self._process.wait()
        if self.why_killed:
            return EngineLost(f"the engine was ended: {self.why_killed}", "the log says what came before")
        if status >= 0:
            return EngineLost(f"the engine ended with status {status}", "its last lines in the daemon's log say why")
        name = signal.Signals(-status).name
        if -status != signal.SIGKILL:
            return EngineLost(f"the engine ended by signal {name}", "a fault in it, or in what it uses: report it")
        return EngineLost(f"the engine ended by signal {name}; {self._memory()}",
                          "somebody killed it, or the kernel for want of memory: `memory` says what models may take")

    def _memory(self) -> str:
        """How much memory it had, may have, and whether the kernel killed for memory since."""
        bound, killed = smallest(), kills() - self._kills_before
        said = f"it had {mib(self.watch.peak_bytes)} at most, " if self.watch.peak_bytes else ""
        if bound is not None:
            said += f"the limit of {bound.name} is {mib(bound.limit)}"
        return said + (f", and the kernel has killed {killed} there for want of memory" if killed > 0 else "")

    def kill(self, why: str = "") -> None:
        """Ends the engine at once, without waiting; `receive` then says so, and `why`."""
        if self._process is not None and self._process.returncode is None:
            self.why_killed = why
            self._process.kill()

    async def stop(self, seconds: float = END_SECONDS) -> None:
        """Closes the channel, which ends the engine after its pass; kills it when that takes too long."""
        if self._writer is not None:
            self._writer.close()
        if self._process is None:
            return
        try:
            # Not wait_for: before Python 3.12 that loses a cancellation which comes just when the process has ended.
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
