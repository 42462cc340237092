"""How are models listed, imported, loaded and unloaded?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from nvstream.v1 import models_pb2 as models
from nvstream.v1.models_pb2_grpc import ModelsServicer
from nvstreamd.api.context import Context
from nvstreamd.api.convert import model_message, progress_message
from nvstreamd.api.peer import Peer, of_call
from nvstreamd.errors import InvalidRequest, ModelBusy
from nvstreamd.names import RULE, is_name
from nvstreamd.supervisor.catalog import Catalog
from nvstreamd.supervisor.errands import PackOrder, pack
from nvstreamd.supervisor.known import Listed, State
from nvstreamd.supervisor.offers import name_of
from nvstreamd.supervisor.reports import Described
from nvstreamd.supervisor.rights import rights_of_caller
from nvstreamd.weights.packed.store import SUFFIX

# Far below PATH_MAX: each level that is not there yet is made, by a call within a call.
LONGEST_PLACE = 1024


class Models(ModelsServicer):
    """nvstream.v1.Models."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._importing: set[str] = set()

    async def List(self, request: models.ListRequest,
                   context: Context) -> models.ListResponse:
        """Every model the daemon knows."""
        return models.ListResponse(models=map(model_message, await self.catalog.all()),
                                   notes=self.catalog.offered.notes)

    async def Get(self, request: models.GetRequest,
                  context: Context) -> models.GetResponse:
        """One model with what it needs."""
        return models.GetResponse(model=model_message(await self.catalog.model(request.model)))

    async def Import(self, request: models.ImportRequest,
                     context: Context) -> AsyncIterator[models.ImportResponse]:
        """Packs a GGUF, with progress."""
        source = Path(request.source)
        name = request.name if request.HasField("name") else name_of(source)
        self._check_import(source, name, request)
        self._importing.add(name)
        try:
            async for response in self._import(of_call(context.peer()), source, name, request):
                yield response
        finally:
            self._importing.discard(name)

    def _check_import(self, source: Path, name: str, request: models.ImportRequest) -> None:
        if not source.is_absolute():
            raise InvalidRequest(f"source {str(source)[:200]!r} is not absolute", "give the whole path", field="source")
        if not is_name(name):
            raise InvalidRequest(f"{name[:80]!r} is no model name", f"give one with --name: {RULE}", field="name")
        home = self.catalog.config.store / f"{name}{SUFFIX}"
        if any(model.name == name and model.path != home for model in self.catalog.config.models):
            raise InvalidRequest(f"the configuration names another model {name}, which would hide this one",
                                 "give another name with --name", field="name")
        if name in self._importing:
            raise ModelBusy(f"{name} is being imported already", "wait for it", field="name")
        served = self.catalog.served.get(name)
        if served is not None and served.state is not State.FAILED:
            raise ModelBusy(f"{name} is loaded", "unload it, or choose another name", field="name")
        _check_places(request.directories, request.devices)

    async def _import(self, peer: Peer, source: Path, name: str,
                      request: models.ImportRequest) -> AsyncIterator[models.ImportResponse]:
        # The manifest goes to the store, so that the model is found again.
        store = self.catalog.config.store
        directories = [Path(directory) for directory in request.directories]
        order = PackOrder(source, rights_of_caller(peer.uid, peer.gid), name, store,
                          directories or ([] if request.devices else [store]), request.devices)
        async for report in pack(order, self.catalog.hardware.blocks, self.catalog.users):
            if isinstance(report, Described):
                imported = Listed(name, Path(report.path), facts=report.facts)
                yield models.ImportResponse(imported=model_message(imported))
            else:
                yield models.ImportResponse(progress=progress_message(report))

    async def Load(self, request: models.LoadRequest,
                   context: Context) -> models.LoadResponse:
        """Brings a model into service."""
        served = await self.catalog.load(
            request.model,
            request.budget if request.HasField("budget") else None,
            request.kv_budget if request.HasField("kv_budget") else None,
            request.backend if request.HasField("backend") else None,
        )
        return models.LoadResponse(model=model_message(served.entry.listed))

    async def Unload(self, request: models.UnloadRequest,
                     context: Context) -> models.UnloadResponse:
        """Takes a model out of service."""
        await self.catalog.unload(request.model)
        return models.UnloadResponse()


def _check_places(directories: Sequence[str], devices: Sequence[str]) -> None:
    relative = [d for d in directories if not Path(d).is_absolute()]
    if relative:
        raise InvalidRequest(f"directory {relative[0]!r} is not absolute", "give the whole path", field="directories")
    if any("\0" in directory or len(directory) > LONGEST_PLACE for directory in directories):
        raise InvalidRequest("a directory has a zero in its name, or a path that is too long",
                             f"at most {LONGEST_PLACE} characters", field="directories")
    if directories and devices:
        raise InvalidRequest("both directories and devices are named", "segments go to one or the other",
                             field="devices")
    if len(set(devices)) != len(devices):
        raise InvalidRequest("a drive is named twice", "name each serial number once", field="devices")
