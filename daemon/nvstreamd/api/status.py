"""What does the daemon say about itself, and about the caller's share of it?"""

from __future__ import annotations

import time
from datetime import timedelta
from importlib.metadata import version

from nvstream.v1 import status_pb2 as status
from nvstream.v1.status_pb2_grpc import StatusServicer
from nvstreamd.api.context import Context
from nvstreamd.api.convert import model_message
from nvstreamd.api.parts import Parts
from nvstreamd.api.peer import Peer, of_call
from nvstreamd.supervisor.admission import BATCH
from nvstreamd.supervisor.model import ServedModel


class Status(StatusServicer):
    """nvstream.v1.Status."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._started = time.monotonic()

    async def GetStatus(self, request: status.GetStatusRequest,
                        context: Context) -> status.GetStatusResponse:
        """Version, uptime, engines, shares, what the daemon does without, and who the caller is taken for."""
        peer = of_call(context.peer())
        guard = self.parts.guard
        response = status.GetStatusResponse(
            version=version("nvstreamd"),
            engines=[engine_status(served) for served in self.parts.catalog.served.values()],
            caller=status.Caller(uid=peer.uid, administrator=guard.permissions.is_administrator(peer)),
            draining=guard.draining,
            notes=[*self.parts.notes, *self.parts.catalog.offered.notes],
            shares=self._shares(peer),
        )
        response.uptime.FromTimedelta(timedelta(seconds=time.monotonic() - self._started))
        return response

    def _shares(self, peer: Peer) -> list[status.UserShare]:
        """The caller's own share first; everybody's for an administrator."""
        own = self._share(peer.share, None if peer.owner is not None else peer.gid)
        if not self.parts.guard.permissions.is_administrator(peer):
            return [own]
        others = {*self.parts.guard.calls.uids, *self.parts.admission.uids} - {peer.share}
        return [own, *(self._share(uid, None) for uid in sorted(others))]

    def _share(self, uid: int, gid: int | None) -> status.UserShare:
        admission, guard = self.parts.admission, self.parts.guard
        quota = admission.quota(uid, gid)
        loads = [load for served in self.parts.catalog.served.values() for load in served.entry.stats.users
                 if load.uid == uid]
        batch = quota.priority == BATCH
        return status.UserShare(
            uid=uid,
            weight=quota.weight,
            priority=status.PRIORITY_BATCH if batch else status.PRIORITY_INTERACTIVE,
            open_calls=guard.calls.taken(uid),
            request_bytes=guard.bytes.taken(uid),
            requests=admission.requests(uid),
            most_requests=quota.requests,
            running=sum(load.running for load in loads),
            queued=sum(load.queued for load in loads),
            tokens_this_minute=max(0, admission.meter.this_minute(uid, quota)),
            tokens_per_minute=quota.tokens_per_minute,
            tokens_today=admission.meter.today(uid),
            tokens_per_day=quota.tokens_per_day,
            longest_context=quota.longest_context,
        )


def engine_status(served: ServedModel) -> status.EngineStatus:
    """The figures of one engine's last report."""
    stats = served.entry.stats
    message = status.EngineStatus(
        model=model_message(served.entry.listed),
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
        proposed_tokens=stats.proposed_tokens,
        accepted_tokens=stats.accepted_tokens,
        expert_hits=stats.expert_hits,
        expert_misses=stats.expert_misses,
    )
    if served.pass_seconds:
        message.pass_running.FromTimedelta(timedelta(seconds=served.pass_seconds))
    if served.stall is not None:
        message.stall = f"{served.stall.what} for {served.stall.seconds:.0f} s"
    return message
