"""Does a model answer at the moment? As grpc.health.v1 tells it.

Not by grpcio's own servicer: that one writes to a watcher while it holds a lock, so a client that takes no byte would
keep everybody else from hearing more, and the daemon from ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer

from nvstreamd.api.context import Context
from nvstreamd.errors import NotFound
from nvstreamd.supervisor.known import State
from nvstreamd.supervisor.model import ServedModel

Verdict: TypeAlias = "health_pb2.HealthCheckResponse.ServingStatus.ValueType"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: the daemon under the empty name, each model under its own."""

    def __init__(self) -> None:
        self._verdicts: dict[str, Verdict] = {"": SERVING}
        self._is_draining = False
        # Of the next change; another takes its place then.
        self._changed = asyncio.Event()

    def follow(self, model: ServedModel) -> None:
        """Says of a model what is true now."""
        if self._is_draining:
            return
        if model.state is State.UNLOADED:
            self._verdicts[model.order.name] = UNKNOWN
        else:
            answers = model.state is State.SERVING and model.stall is None
            self._verdicts[model.order.name] = SERVING if answers else NOT_SERVING
        self._tell()

    def drain(self) -> None:
        """Says NOT_SERVING of everything from now on."""
        self._is_draining = True
        self._verdicts = dict.fromkeys(self._verdicts, NOT_SERVING)
        self._tell()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """The verdict on one name. Raises NotFound for a name that nobody has had."""
        verdict = self._verdicts.get(request.service)
        if verdict is None:
            raise NotFound(f"there is no service {request.service[:80]!r}",
                           "the names are those of models, the empty one is the daemon's", field="service")
        return health_pb2.HealthCheckResponse(status=verdict)

    async def Watch(self, request: health_pb2.HealthCheckRequest,
                    context: Context) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The verdict on one name, and each that follows; who reads slowly misses some, but never the last."""
        told: Verdict | None = None
        while True:
            changed = self._changed
            verdict = self._verdicts.get(request.service, UNKNOWN)
            if verdict != told:
                told = verdict
                yield health_pb2.HealthCheckResponse(status=verdict)
            else:
                await changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
