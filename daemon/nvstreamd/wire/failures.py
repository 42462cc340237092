"""How does an error of ours travel between daemon, engine and worker?"""

from __future__ import annotations

from nvstreamd.errors import NvstreamError
from nvstreamd.wire.engine_pb2 import Failure


def failure_of(error: NvstreamError, call: int = 0) -> Failure:
    """The message of an error, of a call or (0) of the engine. Its texts are bounded, so it fits any frame."""
    return Failure(id=call, status=error.status, message=error.message, hint=error.hint, field=error.field,
                   fatal=error.fatal)
