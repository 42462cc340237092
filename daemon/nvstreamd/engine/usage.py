"""What did a request cost?"""

from __future__ import annotations

import time
from datetime import timedelta

from nvstream.v1.inference_pb2 import TIER_NVME, TIER_RAM, TierBytes, Usage
from nvstreamd.engine.request import Request


def usage_message(request: Request) -> Usage:
    """The public figures of a request that has just ended. Times are of this engine; replayed tokens count."""
    now = time.monotonic()
    admitted = request.admitted or now
    first = request.first_token or now
    usage = Usage(
        prompt_tokens=request.prompt_length,
        cached_tokens=request.cached,
        completion_tokens=request.generated,
        weight_passes=request.passes,
        bytes=[TierBytes(tier=TIER_RAM, bytes=request.resident_bytes),
               TierBytes(tier=TIER_NVME, bytes=request.streamed_bytes)],
    )
    usage.queue_time.FromTimedelta(timedelta(seconds=admitted - request.arrived))
    usage.prefill_time.FromTimedelta(timedelta(seconds=first - admitted))
    usage.decode_time.FromTimedelta(timedelta(seconds=now - first))
    return usage
