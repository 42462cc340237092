"""How does an error of ours become a gRPC status with google.rpc details?"""

from __future__ import annotations

from datetime import timedelta
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from nvstreamd.api.context import Context
from nvstreamd.errors import NvstreamError

DOMAIN = "nvstreamd"
RETRY_SECONDS = {"RESOURCE_EXHAUSTED": 5, "UNAVAILABLE": 1}


def details_of(error: NvstreamError) -> list[Message]:
    """The google.rpc messages that go with an error: always ErrorInfo with the hint, and one by its kind."""
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata={"hint": error.hint})
    found: list[Message] = [info]
    if error.status == "INVALID_ARGUMENT":
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        found.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.status == "FAILED_PRECONDITION":
        unmet = error_details_pb2.PreconditionFailure.Violation(
            type=type(error).__name__, subject=error.field, description=error.message
        )
        found.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    if error.status == "RESOURCE_EXHAUSTED":
        full = error_details_pb2.QuotaFailure.Violation(subject=error.field, description=error.message)
        found.append(error_details_pb2.QuotaFailure(violations=[full]))
    # A full disk is not a quota, which is named, and does not get better by itself.
    if error.status == "UNAVAILABLE" or (error.status == "RESOURCE_EXHAUSTED" and error.field):
        seconds = getattr(error, "retry_seconds", RETRY_SECONDS[error.status])
        delay = Duration()
        delay.FromTimedelta(timedelta(seconds=seconds))
        found.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return found


def status_of(error: NvstreamError) -> grpc.Status:
    """The rich status of an error."""
    packed = []
    for message in details_of(error):
        detail = Any()
        detail.Pack(message)
        packed.append(detail)
    code: int = grpc.StatusCode[error.status].value[0]
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=code, message=str(error), details=packed))
    return status


async def abort(context: Context, error: NvstreamError) -> NoReturn:
    """Ends the call with the error's status and details."""
    status = status_of(error)
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError("abort raises")
