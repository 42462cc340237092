"""Which models are there, which are loaded, and is there memory for one more?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from nvstreamd.config import Config, ModelConfig
from nvstreamd.errors import Draining, InvalidRequest, ModelBusy, ModelNotReady, NotFound, NvstreamError
from nvstreamd.supervisor.budget import allowance
from nvstreamd.supervisor.commands import Settings
from nvstreamd.supervisor.deployment import LoadOrder
from nvstreamd.supervisor.descriptions import Descriptions
from nvstreamd.supervisor.engine_uids import EngineUsers
from nvstreamd.supervisor.errands import describe
from nvstreamd.supervisor.known import Listed, State
from nvstreamd.supervisor.model import ServedModel
from nvstreamd.supervisor.offers import SEARCH_SECONDS, Watched
from nvstreamd.supervisor.routes import Hardware
from nvstreamd.text import places

log = logging.getLogger(__name__)

# What an engine has to end by itself when the daemon ends.
AT_ONCE_SECONDS = 0.5


class Catalog:
    """Models by name: configured ones, those in the configured directories, those in the store."""

    def __init__(self, config: Config, hardware: Hardware, state_changed: Callable[[ServedModel], None]) -> None:
        self.config = config
        self.hardware = hardware
        self.users = EngineUsers(config.engine_user, config.engine_uids)
        self.served: dict[str, ServedModel] = {}
        self._configured: dict[str, ServedModel] = {}
        self.offered = Watched([(model.name, model.path) for model in config.models],
                               (config.store, *config.model_directories))
        self._state_changed = state_changed
        self._is_over = False
        self._descriptions = Descriptions(lambda path: describe(path, hardware.blocks, self.users))

    async def path(self, name: str) -> Path:
        """Where that model lies. Raises NotFound, or ModelNotReady for an import that has not finished."""
        offers = await self.offered.look()
        if name not in offers.paths:
            offers = await self.offered.look(SEARCH_SECONDS)
        path = offers.paths.get(name)
        if path is not None:
            return path
        if name in offers.unfinished:
            raise ModelNotReady(f"the import of {name} has not finished", "run it again: it resumes where it stopped")
        known = ", ".join(sorted(offers.paths)) or "none"
        raise NotFound(f"there is no model {name[:80]!r}", f"known: {known}", field="model")

    async def ready(self, name: str) -> ServedModel:
        """The loaded model of that name. Raises NotFound or ModelNotReady."""
        served = self.served.get(name)
        if served is None:
            await self.path(name)
            raise ModelNotReady(f"model {name} is not loaded", f"administrators load it: nvstream models load {name}")
        if served.state == State.FAILED:
            raise ModelNotReady(f"model {name} failed: {served.entry.error}", "load it again once the cause is mended")
        return served

    async def load(self, name: str, budget: int | None, kv_budget: int | None, backend: str | None) -> ServedModel:
        """Loads a model under a budget (bytes; None: what is left of the daemon's memory). Raises NvstreamError.

        A model that could not be loaded stays listed as FAILED, with the reason, until it is loaded or unloaded.
        """
        self._check_not_loaded(name)
        path = await self.path(name)
        served = self._new(name, path, budget, kv_budget, backend)
        await served.load()
        return served

    def _check_not_loaded(self, name: str) -> None:
        current = self.served.get(name)
        if current is not None and current.state != State.FAILED:
            raise ModelBusy(f"model {name} is loaded already", "unload it first", field="model")

    def _new(self, name: str, path: Path, budget: int | None, kv_budget: int | None,
             backend: str | None) -> ServedModel:
        if self._is_over:
            # Its engine, and the drives that it takes, would be nobody's to give back.
            raise Draining("the daemon is shutting down", "try again when it is back")
        self._check_not_loaded(name)
        served = ServedModel(self._order(name, path, budget, kv_budget, backend), self._state_changed)
        self.served[name] = served
        return served

    async def load_configured(self) -> None:
        """Loads the configured models, one after the other: each may take what those before it left."""
        for model in self.config.models:
            await self._load_configured(model)

    async def return_to_drives(self, served: ServedModel) -> None:
        """A drive has come: a model that lacked it goes over to it, a configured one that failed for it is loaded."""
        await served.return_to_drives()
        if served.state == State.FAILED and served.lacks_drive:
            for model in self.config.models:
                if self._configured.get(model.name) is served is self.served.get(model.name):
                    await self._load_configured(model)

    async def _load_configured(self, model: ModelConfig) -> None:
        try:
            served = self._new(model.name, model.path, model.budget, model.kv_budget, None)
            self._configured[model.name] = served
            await served.load()
        except NvstreamError as error:
            # The others are served all the same; `nvstream models` shows this one with the reason.
            if not self._is_over:
                log.error("model %s is not served: %s", model.name, error)

    async def unload(self, name: str) -> None:
        """Ends a model's engine. Raises NotFound."""
        served = self.served.pop(name, None)
        if served is None:
            raise NotFound(f"model {name[:80]!r} is not loaded", "nvstream models list shows those that are")
        await served.unload()

    async def unload_all(self) -> None:
        """Ends every engine at once: nobody waits for its pass any more. No other begins."""
        self._is_over = True
        ending = [served.unload(AT_ONCE_SECONDS) for served in self.served.values()]
        self.served.clear()
        for outcome in await asyncio.gather(*ending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.error("a model was not unloaded: %s", places(outcome))
        await self.users.settle()

    def tick(self) -> None:
        """Looks after engines; to be called once a second."""
        now = time.monotonic()
        for served in list(self.served.values()):
            served.tick(now)

    async def model(self, name: str) -> Listed:
        """A model with its facts, from its engine or from a look into its file. Raises NvstreamError."""
        served = self.served.get(name)
        if served is not None:
            return served.entry.listed
        path = await self.path(name)
        return Listed(name, path, facts=await self._descriptions.of(path))

    async def all(self) -> list[Listed]:
        """Every model, loaded ones with their facts."""
        offers = await self.offered.look()
        loaded = {name: served.entry.listed for name, served in self.served.items()}
        others = {name: Listed(name, path) for name, path in offers.paths.items()}
        return [model for _, model in sorted((others | loaded).items())]

    def _order(self, name: str, path: Path, budget: int | None, kv_budget: int | None,
               backend: str | None) -> LoadOrder:
        allowed = allowance(self.config, [served.entry.taken for served in self.served.values()], budget, kv_budget)
        unknown = backend is not None and backend not in self.config.backends
        if unknown:
            raise InvalidRequest(f"backend {str(backend)[:40]!r} is not known",
                                 f"one of {', '.join(self.config.backends)}", field="backend")
        settings = Settings(
            memory=allowed.memory,
            budget=allowed.budget,
            kv_budget=allowed.kv_budget,
            backends=[backend] if backend else self.config.backends,
            kernels=self.config.kernels,
            threads=self.config.threads,
            max_running=self.config.max_running,
            prefill_chunk=self.config.prefill_chunk or 0,
            latency_seconds=self.config.latency or 0.0,
            max_context=self.config.max_context,
            vram=self.config.vram or 0,
        )
        return LoadOrder(name, path, settings, self.users, self.config.engine_restarts, self.hardware)
