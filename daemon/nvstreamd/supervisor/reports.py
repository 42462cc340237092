"""Can this be what an engine of ours reports? What cannot is the engine's fault, and it is replaced."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from nvstreamd.errors import ProtocolError, from_wire
from nvstreamd.wire.engine_pb2 import FromEngine

# No stage of an engine takes longer; what is said in seconds becomes a google.protobuf.Duration.
LONGEST_SECONDS: Final = 1e9
# Of a model's facts and notes, which every look at the status repeats.
MOST_TOLD: Final = 1 << 18
# What an engine says of itself, and so of no call.
OF_ITSELF: Final = frozenset(("stats", "beat"))
OF_CALLS: Final = frozenset(("queued", "prefilled", "tokens", "ended", "encoded", "failure"))
SERVING: Final = OF_ITSELF | OF_CALLS


def parsed(data: bytes) -> FromEngine:
    """The report in these bytes. Raises ProtocolError when no engine of ours makes such a one."""
    try:
        report = FromEngine.FromString(data)
    except DecodeError:
        raise ProtocolError(f"{len(data)} bytes that are no report") from None
    kind = report.WhichOneof("report")
    if kind is None:
        raise ProtocolError("an empty report")
    for seconds in (report.queued.eta_seconds, report.beat.pass_seconds, report.stats.pass_seconds,
                    report.loaded.placement.predicted_pass_seconds):
        # Not a number is neither.
        if not 0 <= seconds <= LONGEST_SECONDS:
            raise ProtocolError(f"{kind}: {seconds} seconds")
    if kind in ("loaded", "described") and len(data) > MOST_TOLD:
        raise ProtocolError(f"{kind}: {len(data)} bytes of facts")
    return report


def checked(report: FromEngine, *kinds: str) -> FromEngine:
    """The report, if it is of one of these kinds. Raises a failure as the NvstreamError it is, else ProtocolError."""
    kind = report.WhichOneof("report")
    if kind == "failure":
        failure = report.failure
        raise from_wire(failure.status, failure.message, failure.hint, failure.field)
    if kind not in kinds:
        raise ProtocolError(f"{kind} where {' or '.join(kinds)} was due")
    return report
