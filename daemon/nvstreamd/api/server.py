"""How is the gRPC server put together behind the front?"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nvstream.v1 import inference_pb2, models_pb2, status_pb2
from nvstream.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from nvstream.v1.models_pb2_grpc import add_ModelsServicer_to_server
from nvstream.v1.status_pb2_grpc import add_StatusServicer_to_server
from nvstreamd.api.edge import LARGEST_MESSAGE, Edge
from nvstreamd.api.guard import MOST_CALLS
from nvstreamd.api.inference import Inference
from nvstreamd.api.models import Models
from nvstreamd.api.parts import Parts
from nvstreamd.api.status import Status

log = logging.getLogger(__name__)

# What is larger than the edge takes, but not by much, is refused by the edge, which says why; the rest by gRPC.
LARGEST_RECEIVED = LARGEST_MESSAGE + (2 << 20)
# Without probing for bandwidth a stream that nobody reads yet may bring 64 KiB, not megabytes.
OPTIONS = (("grpc.max_receive_message_length", LARGEST_RECEIVED), ("grpc.http2.bdp_probe", 0),
           ("grpc.max_concurrent_streams", 2 * MOST_CALLS))
STOP_SECONDS = 1.0


async def start(upstream: Path, parts: Parts, stack: AsyncExitStack) -> None:
    """Serves on the private socket at `upstream`; `stack` stops it, whatever clients do."""
    server = grpc.aio.server(interceptors=[Edge(parts.guard)], options=OPTIONS)
    add_InferenceServicer_to_server(Inference(parts.catalog, parts.admission), server)
    add_ModelsServicer_to_server(Models(parts.catalog), server)
    add_StatusServicer_to_server(Status(parts), server)
    health_pb2_grpc.add_HealthServicer_to_server(parts.health, server)
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
    stack.push_async_callback(_stop, server)


async def _stop(server: grpc.aio.Server) -> None:
    """Cancels what is open. A handler that does not end for that is left behind."""
    _, pending = await asyncio.wait([asyncio.ensure_future(server.stop(0))], timeout=STOP_SECONDS)
    if pending:
        log.warning("calls that were cancelled have not ended after %g s", STOP_SECONDS)
