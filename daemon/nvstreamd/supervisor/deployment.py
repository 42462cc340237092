"""What does a model run on at the moment? One engine, on one of the routes by which its bytes can come.

The daemon opens what the route needs and passes descriptors on. Of a drive it keeps only an eventfd, by which the
kernel asks for the drive back: then the engine, the only process that has it open, is ended.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from nvstreamd.errors import MEMORY, CardLost, DriveMissing, EngineLost, HardwareError, NvstreamError, ProtocolError
from nvstreamd.supervisor.commands import Command, Load, PassedDrive, Settings
from nvstreamd.supervisor.engine_uids import EngineUsers, Task
from nvstreamd.supervisor.opening import in_thread, opened
from nvstreamd.supervisor.process import END_SECONDS, EngineProcess
from nvstreamd.supervisor.reports import Loaded, Report, checked
from nvstreamd.supervisor.routes import Hardware, OpenRoute, Route, routes_to
from nvstreamd.supervisor.watch import Stall

log = logging.getLogger(__name__)

# Too small a limit is so on every route.
LIMITS = ("budget", "kv_budget", MEMORY)
# What a card's kernels are called in the configuration, and how often it may fail.
CARD_KERNELS, CARD_FAILURES = "gpu", 2


@dataclass(frozen=True, slots=True)
class Better:
    """Routes that lacked a drive; the first is open now."""

    routes: list[Route]
    open: OpenRoute
    stack: ExitStack


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A route that is not used, and why."""

    route: Route
    error: NvstreamError

    @property
    def lacked_drive(self) -> bool:
        """True when it has not failed, but a drive was not there."""
        return isinstance(self.error, DriveMissing)

    def __str__(self) -> str:
        return f"{self.route.name} given up: {self.error}"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """A model to load: name, path and what its engine is loaded with."""

    name: str
    path: Path
    settings: Settings
    users: EngineUsers
    restarts: int
    hardware: Hardware


class Deployment:
    """The engine of a model, loaded as `order` says.

    `given_up` has the routes that are not used, and why. A route that failed is not tried again. When each of them only
    lacked a drive, and nothing failed since, `reach` tries them again, and `move` goes over.
    """

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.given_up: list[GivenUp] = []
        self._better: Better | None = None
        self._routes: list[Route] | None = None
        self._engine = EngineProcess(order.users, Task.SERVE)
        self._open = OpenRoute(())
        self._of_route = ExitStack()
        self._of_engine = ExitStack()
        self._wanted_back = ""
        self._card_failures = 0
        self._card_given_up = ""

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return self._engine.pid

    @property
    def has_other(self) -> bool:
        """True while another route is left."""
        return self._routes is not None and len(self._routes) > 1

    @property
    def lacks_drive(self) -> bool:
        """True when the model could be served better, or at all, if a drive were there."""
        return bool(self.given_up) and all(each.lacked_drive for each in self.given_up)

    @property
    def has_better(self) -> bool:
        """True while a better route is open."""
        return self._better is not None

    async def begin(self) -> Loaded:
        """The first engine, on the best route that works. Raises the NvstreamError of the last."""
        if self._routes is None:
            of = self.order
            self._routes = await opened(lambda _: routes_to(of.path, of.settings.backends, of.hardware), self._of_route)
        while True:
            try:
                self._open = await opened(self._routes[0].open, self._of_route)
                if not self._came_meanwhile():
                    return await self._start()
                await self._close_route()
                self._routes, self.given_up = [each.route for each in self.given_up] + self._routes, []
            except NvstreamError as error:
                await self.give_up(error)

    def _came_meanwhile(self) -> bool:
        """True when a route needs a drive and has it, and the routes before it did not find it."""
        return self._routes is not None and self._routes[0].needs_drives and self.lacks_drive

    async def reach(self) -> None:
        """Opens a route that lacked a drive, beside the one in use, if the drive is there now. See `has_better`."""
        # The engine in use may be lost meanwhile, and its route given up.
        lacked, still = list(self.given_up), list[GivenUp]()
        for number, each in enumerate(lacked):
            stack = ExitStack()
            try:
                found = await opened(each.route.open, stack)
            except NvstreamError as error:
                still.append(GivenUp(each.route, error))
                log.warning("model %s: %s", self.order.name, still[-1])
            else:
                self._better = Better([later.route for later in lacked[number:]], found, stack)
                break
        self.given_up = still + [each for each in self.given_up if each not in lacked]

    async def move(self) -> Loaded:
        """Another engine, on the better route that is open, or the next. Raises the NvstreamError of the last."""
        assert self._better is not None and self._routes is not None
        await self._end_engine()
        await self._close_route()
        better, self._better = self._better, None
        self._routes = better.routes + self._routes
        self._open, self._of_route = better.open, better.stack
        try:
            return await self._start()
        except NvstreamError as error:
            await self.give_up(error)
            return await self.begin()

    async def restart(self) -> Loaded:
        """Another engine on the same route. Raises NvstreamError; EngineLost when it is worth trying again."""
        await self._end_engine()
        self._check_not_wanted_back()
        await in_thread(self._check_unchanged)
        return await self._start()

    async def give_up(self, error: NvstreamError) -> None:
        """Leaves the route that is in use for the next one. Raises the error when there is none, or none would help."""
        await self._end_engine()
        if not self.has_other or error.field in LIMITS:
            raise error
        assert self._routes is not None
        await self._close_route()
        self.given_up.append(GivenUp(self._routes.pop(0), error))
        log.warning("model %s: %s", self.order.name, self.given_up[-1])

    async def end(self, seconds: float = END_SECONDS) -> None:
        """Ends the engine, which has some seconds to do that by itself, and gives everything back."""
        await self._end_engine(seconds)
        await self._close_route()
        better, self._better = self._better, None
        if better is not None:
            await in_thread(better.stack.close)

    @property
    def notes(self) -> list[str]:
        """What is not used, and why: routes, and a card."""
        return [*map(str, self.given_up), *([self._card_given_up] if self._card_given_up else [])]

    def card_failed(self, error: CardLost) -> None:
        """Notes that a card failed: engines do without it, where they can, once it has often enough.

        A fresh engine has a fresh context: once it may be the end of it. What an engine says of its card is not taken
        for more than that: it is this model alone which does without.
        """
        self._card_failures += 1
        if self._card_failures < CARD_FAILURES or self._card_given_up or not self._without_card:
            return
        self._card_given_up = f"{CARD_KERNELS} kernels given up: they failed {self._card_failures} times, last: {error}"
        log.warning("model %s: %s; it is served without until it is loaded again", self.order.name, self._card_given_up)

    @property
    def _without_card(self) -> list[str]:
        return [name for name in self.order.settings.kernels if name != CARD_KERNELS]

    def kill(self, why: str) -> None:
        """Ends the engine at once; `receive` then says so, and `why`."""
        self._engine.kill(why)

    @property
    def ended_for_a_reason(self) -> bool:
        """True when the engine was ended because somebody wanted that, not because of what it did."""
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

    def send(self, command: Command) -> None:
        """Queues a command to the engine; one that is dead swallows it."""
        self._engine.send(command)

    async def receive(self) -> Report:
        """The engine's next report. Raises EngineLost when the engine has ended, or is ended for what it said."""
        return await self._engine.receive()

    async def condemned(self, error: NvstreamError) -> EngineLost:
        """Ends the engine for an error that is its own. Returns the EngineLost to raise."""
        return await self._engine.condemned(error)

    def _check_not_wanted_back(self) -> None:
        if self._wanted_back:
            raise HardwareError(f"the kernel wants drive {self._wanted_back} back",
                                "it was unplugged, or its driver unbound: load the model again when it is back")

    def _check_unchanged(self) -> None:
        """Raises ModelChanged when a file is another by now. Of a drive that the kernel has it reads some pages."""
        for file in self._open.files:
            if file.fd >= 0:
                file.check_unchanged()

    async def _start(self) -> Loaded:
        assert self._routes is not None
        self._engine, self._wanted_back = EngineProcess(self.order.users, Task.SERVE), ""
        with ExitStack() as passed:
            drives, descriptors = self._open_drives(passed)
            settings = self.order.settings
            if self._card_given_up:
                settings = replace(settings, kernels=self._without_card)
            command = Load(settings, self._open.files, self._routes[0].backends, drives)
            await self._engine.start(command, self._open.files, descriptors)
        # While it was started nothing could end it.
        self._check_not_wanted_back()
        try:
            return checked(await self._engine.receive(), Loaded)
        except ProtocolError as error:
            raise await self._engine.condemned(error) from error
        except EngineLost:
            self._check_not_wanted_back()
            raise

    def _open_drives(self, passed: ExitStack) -> tuple[list[PassedDrive], list[int]]:
        """Drives and descriptors to pass on, watched. `passed` closes what is not needed after that."""
        drives: list[PassedDrive] = []
        descriptors: list[int] = []
        for drive in self._open.drives:
            opened_drive = drive.open(passed, self._of_engine)
            if opened_drive.wanted_back is not None:
                self._watch(drive.serial, opened_drive.wanted_back)
            descriptors += opened_drive.descriptors
            drives.append(PassedDrive(drive.serial, drive.address, opened_drive.grant))
        return drives, descriptors

    def _watch(self, serial: str, event: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(event, self._give_back, serial, event)
        self._of_engine.callback(loop.remove_reader, event)

    def _give_back(self, serial: str, event: int) -> None:
        """The kernel waits until nobody has the drive open."""
        asyncio.get_running_loop().remove_reader(event)
        log.warning("model %s: the kernel wants drive %s back", self.order.name, serial)
        self._wanted_back = serial
        self._engine.kill(f"the kernel wants drive {serial} back")

    async def _end_engine(self, seconds: float = END_SECONDS) -> None:
        await self._engine.stop(seconds)
        self._of_engine.close()

    async def _close_route(self) -> None:
        stack, self._of_route = self._of_route, ExitStack()
        self._open = OpenRoute(())
        await in_thread(stack.close)
