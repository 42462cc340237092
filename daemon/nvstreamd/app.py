"""How do the parts become a daemon? The only module that knows them all."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from nvstreamd.api import server
from nvstreamd.api.front import Front, public_socket
from nvstreamd.api.guard import Guard
from nvstreamd.api.permissions import Permissions
from nvstreamd.config import Config
from nvstreamd.errors import ConfigError
from nvstreamd.supervisor.catalog import Catalog
from nvstreamd.supervisor.model import ServedModel
from nvstreamd.systemd import listening_socket, notify

log = logging.getLogger(__name__)


class App:
    """The daemon: serves until it is told to stop, then drains."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.health = server.Health()
        self.guard = Guard(Permissions(config.admin_group))
        self.catalog = Catalog(config, self._model_changed)
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Returns after SIGTERM or SIGINT, once streams have ended or `drain_seconds` are over."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            listener = self._listener(stack)
            private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nvstreamd-")))
            stack.push_async_callback(self.catalog.unload_all)
            await server.start(private / "grpc.sock", self.guard, self.catalog, self.health, stack)
            await Front(listener, private / "grpc.sock").start(stack)
            log.info("listening on %s", listener.getsockname())
            for model in self.config.models:
                await self.catalog.load(model.name, model.budget, model.kv_budget, None)
            notify("READY=1")
            await stop.wait()
            await self._drain()

    def _listener(self, stack: AsyncExitStack) -> socket.socket:
        given = listening_socket()
        if given is not None:
            return given
        try:
            listener = public_socket(self.config.socket)
        except OSError as error:
            raise ConfigError(f"{self.config.socket}: {error.strerror}",
                              "another daemon listens there, or its directory is not writable") from error
        stack.callback(self.config.socket.unlink, missing_ok=True)
        return listener

    async def _drain(self) -> None:
        """Takes no new calls, and lets open streams end."""
        self.guard.drain()
        notify("STOPPING=1")
        await self.health.servicer.enter_graceful_shutdown()
        log.info("draining: %d streams are open", self._open_streams())
        deadline = asyncio.get_running_loop().time() + self.config.drain_seconds
        while self._open_streams() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)

    def _open_streams(self) -> int:
        return sum(len(model.streams) for model in self.catalog.served.values())

    def _model_changed(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(self.health.follow(model))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
