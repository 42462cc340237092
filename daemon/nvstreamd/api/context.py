"""What is a call's context to our servicers? grpcio's, whatever the message types."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def when_over(context: Context, action: Callable[[], None]) -> None:
    """Calls `action` when the call has ended, however it ended.

    Not a job for `finally`: grpcio leaves a generator that it has cancelled to the garbage collector.
    """
    # The stubs name a class here; grpcio takes any callable.
    context.add_done_callback(lambda _: action())  # type: ignore[arg-type]
