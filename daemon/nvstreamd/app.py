"""How do the parts become a daemon? The only module that knows them all."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack

from nvdma.heap import give_back_large_pieces
from nvstreamd import message_ids, systemd
from nvstreamd.api import server
from nvstreamd.api.front import Front, public_socket
from nvstreamd.api.guard import Guard
from nvstreamd.api.health import Health
from nvstreamd.api.parts import Parts
from nvstreamd.api.permissions import Permissions
from nvstreamd.api.upstream import private_directory
from nvstreamd.config import Config
from nvstreamd.errors import ConfigError, HardwareError, NvstreamError
from nvstreamd.hardware.blocks import DriveStore
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import policy_of
from nvstreamd.hardware.holder import ClaimHolder
from nvstreamd.hardware.journal import Journal
from nvstreamd.hardware.system import System
from nvstreamd.memory import excess
from nvstreamd.places import remove_own
from nvstreamd.supervisor.admission import Admission
from nvstreamd.supervisor.arrivals import Arrivals
from nvstreamd.supervisor.budget import written_before
from nvstreamd.supervisor.catalog import Catalog
from nvstreamd.supervisor.model import ServedModel
from nvstreamd.supervisor.owners import Owners
from nvstreamd.supervisor.routes import Hardware
from nvstreamd.supervisor.watch import TICK_SECONDS
from nvstreamd.text import places

log = logging.getLogger(__name__)


def allow_pinning() -> None:
    """Engines pin the memory that a drive writes to: without privilege they may only as far as ours lets them.

    Raises HardwareError when the limit stays.
    """
    if os.getuid() or resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY:
        return
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError) as error:
        raise HardwareError(f"RLIMIT_MEMLOCK stays: {error}",
                            "a service needs LimitMEMLOCK=infinity") from error


class App:
    """The daemon: serves until it is told to stop, then drains."""

    def __init__(self, config: Config, system: System | None = None) -> None:
        self.config = config
        self.health = Health()
        self.guard = Guard(Permissions(config.admin_group))
        policy, journal = policy_of(config), Journal(config.claims)
        self.system = system or System()
        self.holder = ClaimHolder(Claims(self.system, journal), policy)
        hardware = Hardware(DriveStore(self.system, policy, journal), self.holder)
        self.catalog = Catalog(config, hardware, self._model_changed)
        self.admission = Admission(config)
        self.notes: list[str] = []
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Returns after SIGTERM or SIGINT, once streams have ended or `drain_seconds` are over."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            self.catalog.users.check()
            listener = self._listener(stack)
            with ExitStack() as kept:
                private = private_directory(kept)
                stack.push(kept.pop_all())
            self._attempt("engines may pin little memory", allow_pinning)
            if not give_back_large_pieces():
                self.notes.append("memory of large requests may be kept: the C library has no mallopt")
            self._look_at_memory()
            if way := systemd.way():
                self.notes.append(way)
                log.info("%s", way)
            self._recover()
            stack.push_async_callback(self.catalog.unload_all)
            self.admission.meter.open()
            stack.callback(self.admission.meter.save, at_once=True)
            parts = Parts(self.guard, self.catalog, self.admission, self.health, self.notes)
            await server.start(private / "grpc.sock", parts, stack)
            await Front(listener, private / "grpc.sock", Owners()).start(stack)
            ticking = asyncio.create_task(self._tick())
            stack.callback(ticking.cancel)
            log.info("listening on %s", listener.getsockname(), extra=message_ids.LISTENING)
            with ExitStack() as listening:
                self._attempt("a drive that comes later is not noticed", lambda: self._listen_for_drives(listening))
                self._spawn(self.catalog.load_configured())
                # What is there now stays: only what comes later is looked through for garbage.
                gc.freeze()
                systemd.notify("READY=1")
                await stop.wait()
            await self._drain()

    def _listener(self, stack: AsyncExitStack) -> socket.socket:
        given = systemd.listening_socket()
        if given is not None:
            return given
        try:
            listener = public_socket(self.config.socket)
        except OSError as error:
            hint = "another daemon listens there" if error.errno == errno.EADDRINUSE else \
                "its directory must be there, and the daemon's to write: name another with --socket"
            raise ConfigError(f"{self.config.socket}: {error.strerror or error}", hint) from error
        own = os.open(self.config.socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(remove_own, self.config.socket, own)
        return listener

    def _look_at_memory(self) -> None:
        """A ceiling above what there is protects nobody: loads that do not fit are refused all the same."""
        found = excess(self.config.memory)
        if found is not None:
            self.notes.append(f"{found}: what does not fit is refused")
            log.warning("%s", self.notes[-1])
        before = written_before(self.config)
        if before is not None:
            self.notes.append(before)
            log.warning("%s", before)

    async def _tick(self) -> None:
        """Looks after engines and counters once a second, whatever happens."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self.catalog.tick()
                self.admission.meter.save()
                self.guard.let_go()
            except Exception as error:
                log.error("looking after engines: %s", places(error))

    def _recover(self) -> None:
        """Gives back what an earlier daemon left claimed, before anything is claimed anew."""
        try:
            self.holder.recover()
        except NvstreamError as error:
            # Models on other drives, and in files, are served all the same.
            log.error("a drive is not given back: %s", error)

    def _listen_for_drives(self, stack: ExitStack) -> None:
        """A drive may be found by the kernel after our start, or be plugged in later."""
        if not self.config.drives:
            return
        Arrivals(self.system.uevents(), self._drives_came).start(stack)

    def _attempt(self, otherwise: str, act: Callable[[], None]) -> None:
        """Acts, and does without what fails: the log says so once, `status` always."""
        try:
            act()
        except HardwareError as error:
            self.notes.append(f"{otherwise}: {error}")
            log.warning("%s", self.notes[-1])

    def _drives_came(self) -> None:
        for model in self.catalog.served.values():
            self._spawn(self.catalog.return_to_drives(model))

    async def _drain(self) -> None:
        """Takes no new calls, and lets open streams end."""
        systemd.notify("STOPPING=1")
        self.health.drain()
        log.info("draining: %d calls are open", self.guard.open_calls, extra=message_ids.DRAINING)
        left = await self.guard.drain(self.config.drain_seconds)
        if left:
            log.warning("%d calls are cut off after %g seconds of draining", left, self.config.drain_seconds)

    def _model_changed(self, model: ServedModel) -> None:
        self.health.follow(model)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Runs `work` beside everything else; asyncio itself keeps no reference to it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
