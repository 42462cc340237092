"""How is the gRPC server put together behind the front?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from nvstream.v1 import inference_pb2, models_pb2, status_pb2
from nvstream.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from nvstream.v1.models_pb2 import MODEL_STATE_SERVING, MODEL_STATE_UNLOADED
from nvstream.v1.models_pb2_grpc import add_ModelsServicer_to_server
from nvstream.v1.status_pb2_grpc import add_StatusServicer_to_server
from nvstreamd.api.guard import Guard
from nvstreamd.api.inference import Inference
from nvstreamd.api.models import Models
from nvstreamd.api.status import Status
from nvstreamd.api.wellformed import WellFormed
from nvstreamd.supervisor.catalog import Catalog
from nvstreamd.supervisor.model import ServedModel

# A prompt of a million tokens fits; what is larger is refused before it is parsed.
LARGEST_MESSAGE = 16 << 20


class Health:
    """grpc.health.v1: the daemon under the empty name, each model under its own."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()

    async def follow(self, model: ServedModel) -> None:
        """Says of a model what is true now."""
        if model.state == MODEL_STATE_UNLOADED:
            verdict = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        elif model.state == MODEL_STATE_SERVING:
            verdict = health_pb2.HealthCheckResponse.SERVING
        else:
            verdict = health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set(model.order.name, verdict)


async def start(upstream: Path, guard: Guard, catalog: Catalog, health: Health, notes: Sequence[str],
                stack: AsyncExitStack) -> None:
    """Serves on the private socket at `upstream`; `stack` stops it. `notes`, which may grow, is for Status."""
    server = grpc.aio.server(interceptors=[WellFormed()],
                             options=[("grpc.max_receive_message_length", LARGEST_MESSAGE)])
    add_InferenceServicer_to_server(Inference(guard, catalog), server)
    add_ModelsServicer_to_server(Models(guard, catalog), server)
    add_StatusServicer_to_server(Status(guard, catalog, notes), server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    names = [
        inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
        models_pb2.DESCRIPTOR.services_by_name["Models"].full_name,
        status_pb2.DESCRIPTOR.services_by_name["Status"].full_name,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    ]
    reflection.enable_server_reflection(names, server)
    server.add_insecure_port(f"unix:{upstream}")
    await server.start()
    stack.push_async_callback(server.stop, 0)
