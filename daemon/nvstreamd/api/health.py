"""Does a model answer at the moment? As grpc.health.v1 tells it."""

from __future__ import annotations

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from nvstream.v1.models_pb2 import MODEL_STATE_SERVING, MODEL_STATE_UNLOADED
from nvstreamd.supervisor.model import ServedModel


class Health:
    """grpc.health.v1: the daemon under the empty name, each model under its own."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()

    async def follow(self, model: ServedModel) -> None:
        """Says of a model what is true now."""
        if model.state == MODEL_STATE_UNLOADED:
            verdict = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        elif model.state == MODEL_STATE_SERVING and model.stall is None:
            verdict = health_pb2.HealthCheckResponse.SERVING
        else:
            verdict = health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set(model.order.name, verdict)
