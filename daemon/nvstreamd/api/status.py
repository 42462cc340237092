"""What does the daemon say about itself?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version

from nvstream.v1 import status_pb2 as status
from nvstream.v1.status_pb2_grpc import StatusServicer
from nvstreamd.api.context import Context
from nvstreamd.api.guard import Guard
from nvstreamd.api.rpc_errors import abort
from nvstreamd.errors import NvstreamError
from nvstreamd.supervisor.catalog import Catalog, as_message
from nvstreamd.supervisor.model import ServedModel


class Status(StatusServicer):
    """nvstream.v1.Status."""

    def __init__(self, guard: Guard, catalog: Catalog, notes: Sequence[str]) -> None:
        self.guard = guard
        self.catalog = catalog
        self.notes = notes
        self._started = time.monotonic()

    async def GetStatus(self, request: status.GetStatusRequest,
                        context: Context) -> status.GetStatusResponse:
        """Version, uptime, engines, what the daemon does without, and who the caller is taken for."""
        try:
            peer = self.guard.admit(context, "nvstream.v1.Status/GetStatus")
        except NvstreamError as error:
            await abort(context, error)
        response = status.GetStatusResponse(
            version=version("nvstreamd"),
            engines=[engine_status(served) for served in self.catalog.served.values()],
            caller=status.Caller(uid=peer.uid, administrator=self.guard.permissions.is_administrator(peer)),
            draining=self.guard.draining,
            notes=self.notes,
        )
        response.uptime.FromTimedelta(timedelta(seconds=time.monotonic() - self._started))
        return response


def engine_status(served: ServedModel) -> status.EngineStatus:
    """The figures of one engine's last report."""
    stats = served.stats
    return status.EngineStatus(
        model=as_message(served),
        running=stats.running,
        queued=stats.queued,
        restarts=served.restarts,
        passes=stats.passes,
        streamed_bytes=stats.streamed_bytes,
        tokens_generated=stats.tokens_generated,
        kv_pages_used=stats.kv_pages_used,
        kv_pages_total=stats.kv_pages_total,
        pid=served.pid,
        peak_weight_bytes=stats.peak_weight_bytes,
    )
