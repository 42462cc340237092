"""What does a model run on at the moment? One engine, on one of the ways that its bytes can come.

The daemon opens what the way needs and passes descriptors on. Of a drive it keeps only an eventfd, by which the kernel
asks for the drive back: then the engine, the only process that has it open, is ended.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.errors import MEMORY, DriveMissing, EngineLost, HardwareError, NvstreamError, ProtocolError
from nvstreamd.supervisor.engine_uids import EngineUsers, Task
from nvstreamd.supervisor.opening import in_thread, opened
from nvstreamd.supervisor.process import END_SECONDS, EngineProcess, named
from nvstreamd.supervisor.reports import checked
from nvstreamd.supervisor.watch import Stall
from nvstreamd.supervisor.ways import Hardware, Opening, Way, ways_to
from nvstreamd.wire.engine_pb2 import ClaimedDrive, FromEngine, Load, Loaded, ToEngine

log = logging.getLogger(__name__)

# Too small a limit is so on every way.
LIMITS = ("budget", "kv_budget", MEMORY)


@dataclass(frozen=True, slots=True)
class Better:
    """Ways that lacked a drive; the first is open now."""

    ways: list[Way]
    opening: Opening
    stack: ExitStack


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A way that is not used, and why."""

    way: Way
    error: NvstreamError

    @property
    def lacked_drive(self) -> bool:
        """Whether it has not failed, but a drive was not there."""
        return isinstance(self.error, DriveMissing)

    def __str__(self) -> str:
        return f"{self.way.name} given up: {self.error}"


class Lane:
    """The engine of the model at `path`, loaded by `command`; `name` is the model's, for the log.

    Which ways are not used, and why, is in `given_up`. One that failed is not tried again. When all of them lacked a
    drive, and nothing failed since, `reach` tries them again, and `move` goes over.
    """

    def __init__(self, name: str, path: Path, command: Load, users: EngineUsers, hardware: Hardware) -> None:
        self.name = name
        self.path = path
        self.command = command
        self.users = users
        self.hardware = hardware
        self.given_up: list[GivenUp] = []
        self._better: Better | None = None
        self._ways: list[Way] | None = None
        self._engine = EngineProcess(users, Task.SERVE)
        self._opening = Opening(())
        self._of_way = ExitStack()
        self._of_engine = ExitStack()
        self._wanted_back = ""

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return self._engine.pid

    @property
    def has_other(self) -> bool:
        """Whether another way is left."""
        return self._ways is not None and len(self._ways) > 1

    @property
    def lacks_drive(self) -> bool:
        """Whether the model could be served better, or at all, if a drive were there."""
        return bool(self.given_up) and all(each.lacked_drive for each in self.given_up)

    @property
    def has_better(self) -> bool:
        """Whether a better way is open."""
        return self._better is not None

    async def begin(self) -> Loaded:
        """The first engine, on the best way that works. Raises the NvstreamError of the last."""
        if self._ways is None:
            self._ways = await opened(lambda _: ways_to(self.path, self.command.backends, self.hardware), self._of_way)
        while True:
            try:
                self._opening = await opened(self._ways[0].open, self._of_way)
                if not self._came_meanwhile():
                    return await self._start()
                await self._close_way()
                self._ways, self.given_up = [each.way for each in self.given_up] + self._ways, []
            except NvstreamError as error:
                await self.give_up(error)

    def _came_meanwhile(self) -> bool:
        """Whether a way needs a drive and has it, and the ways before it did not find it."""
        return self._ways is not None and self._ways[0].needs_drives and self.lacks_drive

    async def reach(self) -> None:
        """Opens a way that lacked a drive, beside the one in use, if the drive is there now. See `has_better`."""
        # The engine in use may be lost meanwhile, and its way given up.
        lacked, still = list(self.given_up), list[GivenUp]()
        for number, each in enumerate(lacked):
            stack = ExitStack()
            try:
                opening = await opened(each.way.open, stack)
            except NvstreamError as error:
                still.append(GivenUp(each.way, error))
                log.warning("model %s: %s", self.name, still[-1])
            else:
                self._better = Better([later.way for later in lacked[number:]], opening, stack)
                break
        self.given_up = still + [each for each in self.given_up if each not in lacked]

    async def move(self) -> Loaded:
        """Another engine, on the better way that is open, or the next. Raises the NvstreamError of the last."""
        assert self._better is not None and self._ways is not None
        await self._end_engine()
        await self._close_way()
        better, self._better = self._better, None
        self._ways = better.ways + self._ways
        self._opening, self._of_way = better.opening, better.stack
        try:
            return await self._start()
        except NvstreamError as error:
            await self.give_up(error)
            return await self.begin()

    async def restart(self) -> Loaded:
        """Another engine on the same way. Raises NvstreamError; EngineLost when it is worth trying again."""
        await self._end_engine()
        self._check_not_wanted_back()
        await in_thread(self._check_unchanged)
        return await self._start()

    async def give_up(self, error: NvstreamError) -> None:
        """Leaves the way that is in use for the next one. Raises the error when there is none, or none would help."""
        await self._end_engine()
        if not self.has_other or error.field in LIMITS:
            raise error
        assert self._ways is not None
        await self._close_way()
        self.given_up.append(GivenUp(self._ways.pop(0), error))
        log.warning("model %s: %s", self.name, self.given_up[-1])

    async def end(self, seconds: float = END_SECONDS) -> None:
        """Ends the engine, which has some seconds to do that by itself, and gives everything back."""
        await self._end_engine(seconds)
        await self._close_way()
        better, self._better = self._better, None
        if better is not None:
            await in_thread(better.stack.close)

    def kill(self, why: str) -> None:
        """Ends the engine at once; `receive` then says so, and `why`."""
        self._engine.kill(why)

    @property
    def ended_for_a_reason(self) -> bool:
        """Whether the engine was ended because somebody wanted that, not because of what it did."""
        return bool(self._wanted_back) or self.has_better

    def tick(self, now: float, expected_pass: float) -> Stall:
        """How long the engine has been stuck, as of `now` (time.monotonic)."""
        if self._engine.pid is None:
            return Stall(0.0, expected_pass, "no engine")
        return self._engine.watch.tick(now, expected_pass)

    @property
    def pass_seconds(self) -> float:
        """For how long the pass has been running that runs; 0 between passes."""
        return self._engine.watch.pass_seconds

    def send(self, command: ToEngine) -> None:
        """See EngineProcess."""
        self._engine.send(command)

    async def receive(self) -> FromEngine:
        """See EngineProcess."""
        return await self._engine.receive()

    async def condemned(self, error: NvstreamError) -> EngineLost:
        """See EngineProcess."""
        return await self._engine.condemned(error)

    def _check_not_wanted_back(self) -> None:
        if self._wanted_back:
            raise HardwareError(f"the kernel wants drive {self._wanted_back} back",
                                "it was unplugged, or its driver unbound: load the model again when it is back")

    def _check_unchanged(self) -> None:
        """Of a drive that is still the kernel's this reads some pages."""
        for file in self._opening.files:
            if file.fd >= 0:
                file.check_unchanged()

    async def _start(self) -> Loaded:
        assert self._ways is not None
        command = Load()
        command.CopyFrom(self.command)
        command.files.extend(named(self._opening.files))
        del command.backends[:]
        command.backends.extend(self._ways[0].backends)
        self._engine, self._wanted_back = EngineProcess(self.users, Task.SERVE), ""
        with ExitStack() as passed:
            descriptors = self._open_drives(command, passed)
            await self._engine.start(ToEngine(load=command), self._opening.files, descriptors)
        # While it was started nothing could end it.
        self._check_not_wanted_back()
        try:
            return checked(await self._engine.receive(), "loaded").loaded
        except ProtocolError as error:
            raise await self._engine.condemned(error) from error
        except EngineLost:
            self._check_not_wanted_back()
            raise

    def _open_drives(self, command: Load, passed: ExitStack) -> list[int]:
        """Descriptors to pass on, and a watch on drives. `passed` closes what is not needed after that."""
        descriptors: list[int] = []
        for drive in self._opening.drives:
            opened_drive = drive.open(passed, self._of_engine)
            if opened_drive.wanted_back is not None:
                self._watch(drive.serial, opened_drive.wanted_back)
            descriptors += opened_drive.descriptors
            command.drives.append(ClaimedDrive(serial=drive.serial, address=drive.address, way=opened_drive.way))
        return descriptors

    def _watch(self, serial: str, event: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(event, self._give_back, serial, event)
        self._of_engine.callback(loop.remove_reader, event)

    def _give_back(self, serial: str, event: int) -> None:
        """The kernel waits until nobody has the drive open."""
        asyncio.get_running_loop().remove_reader(event)
        log.warning("model %s: the kernel wants drive %s back", self.name, serial)
        self._wanted_back = serial
        self._engine.kill(f"the kernel wants drive {serial} back")

    async def _end_engine(self, seconds: float = END_SECONDS) -> None:
        await self._engine.stop(seconds)
        self._of_engine.close()

    async def _close_way(self) -> None:
        stack, self._of_way = self._of_way, ExitStack()
        self._opening = Opening(())
        await in_thread(stack.close)
