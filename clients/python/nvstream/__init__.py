"""What does a Python program need to use nvstreamd?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvstream.aio import AsyncClient, AsyncImport, AsyncStream
    from nvstream.client import Client, Import, Stream
    from nvstream.errors import (
        Aborted,
        Cancelled,
        DeadlineExceeded,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        NotFound,
        NvstreamError,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        Violation,
    )
    from nvstream.events import (
        Accepted,
        Delta,
        Event,
        Finished,
        FinishReason,
        Phase,
        Progress,
        Tier,
        TokenLogprob,
        TopLogprob,
        Usage,
    )
    from nvstream.facts import (
        Caller,
        DaemonStatus,
        EngineStatus,
        ImportProgress,
        Model,
        ModelFacts,
        ModelFormat,
        ModelList,
        ModelState,
        Placement,
        Priority,
        UserShare,
    )
    from nvstream.requests import Message, Options

__all__ = [
    "Aborted",
    "Accepted",
    "AsyncClient",
    "AsyncImport",
    "AsyncStream",
    "Caller",
    "Cancelled",
    "Client",
    "DaemonStatus",
    "DeadlineExceeded",
    "Delta",
    "EngineStatus",
    "Event",
    "FailedPrecondition",
    "FinishReason",
    "Finished",
    "Import",
    "ImportProgress",
    "Internal",
    "InvalidArgument",
    "Message",
    "Model",
    "ModelFacts",
    "ModelFormat",
    "ModelList",
    "ModelState",
    "NotFound",
    "NvstreamError",
    "Options",
    "PermissionDenied",
    "Phase",
    "Placement",
    "Priority",
    "Progress",
    "ResourceExhausted",
    "Stream",
    "Tier",
    "TokenLogprob",
    "TopLogprob",
    "Unavailable",
    "Usage",
    "UserShare",
    "Violation",
]

HOMES = ("events", "facts", "requests", "errors", "client", "aio")


def __getattr__(name: str) -> object:
    """A name is imported when it is asked for first: the daemon's engine needs the messages below here, and no gRPC."""
    for home in HOMES if name in __all__ else ():
        module = import_module(f"nvstream.{home}")
        if hasattr(module, name):
            globals()[name] = getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that a shell completes."""
    return sorted({*globals(), *__all__})
