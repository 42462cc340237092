"""Which exception is a failed gRPC call, with every detail the daemon sent along?"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from nvstream.address import MESSAGE_BYTES
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

_BY_CODE: dict[grpc.StatusCode, type[NvstreamError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ALREADY_EXISTS: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}

# What connect(2) said, as gRPC words it, and what that means for a socket file.
_CONNECT_FAILURES = (
    ("No such file or directory", "there is no socket at {path}"),
    ("Connection refused", "nobody listens at {path}"),
    ("Permission denied", "you may not open {path}"),
)
_START = "start the daemon (systemctl start nvstreamd, or nvstreamd), or set NVSTREAM_SOCKET or --socket"
_BROKEN = ("Socket closed", "Stream removed", "Connection reset", "Broken pipe")
# Of gRPC itself, at either end: the size of a message, and how much was allowed.
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\.? (\d+)\)")
_ASK_AGAIN = "its log says why (journalctl -u nvstreamd); nothing is repeated by itself, so ask again"


class FailedCall(Protocol):
    """The part that grpc's sync and asyncio errors and calls have in common once they are over."""

    def code(self) -> grpc.StatusCode:
        """The status."""

    def details(self) -> str | None:
        """The status's message."""

    def trailing_metadata(self) -> Any:
        """Pairs of key and value, or None."""


@dataclass(slots=True)
class _Details:
    """The parts of google.rpc details that have been unpacked so far."""

    hint: str = ""
    localized: str = ""
    retry_after: float | None = None
    violations: list[Violation] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def from_call(call: FailedCall, socket: Path) -> NvstreamError:
    """The exception for a call that ended with a status other than OK; `socket` is where it was dialled."""
    code, message = call.code(), call.details() or ""
    found = _unpack(call)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (sizes := _TOO_LARGE.search(message)):
        return _too_large(int(sizes[1]), int(sizes[2]))
    if found.hint:
        # The daemon repeats the hint in the message, for clients that unpack no details.
        message = message.removesuffix(f" ({found.hint})")
    kind = _BY_CODE.get(code, NvstreamError)
    if kind is Unavailable and not found.hint:
        message, found.hint = _unreachable(message, socket)
    error = kind(
        found.localized or message or code.name.lower().replace("_", " "),
        hint=found.hint,
        retry_after=found.retry_after,
        violations=tuple(found.violations),
        links=tuple(found.links),
    )
    # Several codes share a class; the name on the wire is kept.
    error.status = code.name
    return error


def _too_large(size: int, most: int) -> NvstreamError:
    """gRPC says the same of a queue that is full; but this will not fit the next time either."""
    if most == MESSAGE_BYTES:
        return Internal(f"the daemon's answer has {size} bytes, more than the {most} that this client takes")
    why = f"the request has {size} bytes, the daemon takes {most}"
    return InvalidArgument(why, hint="send less", violations=(Violation("request", why),))


def _unreachable(message: str, socket: Path) -> tuple[str, str]:
    """A readable message and a hint for a status that gRPC itself, not the daemon, made up."""
    if any(symptom in message for symptom in _BROKEN):
        return f"the connection to the daemon broke ({message})", _ASK_AGAIN
    if "failed to connect to all addresses" not in message:
        return message, ""
    for symptom, meaning in _CONNECT_FAILURES:
        if symptom in message:
            return meaning.format(path=socket), _START
    return f"no daemon answers at {socket}: {message}", _START


def _unpack(call: FailedCall) -> _Details:
    found = _Details()
    try:
        status = rpc_status.from_call(call)
        for detail in status.details if status else ():
            _add(detail, found)
    except (ValueError, DecodeError):
        # Details that contradict the status or do not parse are worth less than the status itself.
        return _Details()
    return found


def _add(detail: Any, found: _Details) -> None:
    """Unpacks one google.protobuf.Any; kinds that nobody here knows are skipped."""
    kind = detail.TypeName().removeprefix("google.rpc.")
    unpack = _UNPACKERS.get(kind)
    if unpack is not None:
        message = getattr(error_details_pb2, kind)()
        detail.Unpack(message)
        unpack(message, found)


def _bad_request(message: Any, found: _Details) -> None:
    found.violations += [Violation(one.field, one.description) for one in message.field_violations]


def _subjects(message: Any, found: _Details) -> None:
    found.violations += [Violation(one.subject, one.description) for one in message.violations]


def _retry_info(message: Any, found: _Details) -> None:
    found.retry_after = message.retry_delay.seconds + message.retry_delay.nanos / 1e9


def _error_info(message: Any, found: _Details) -> None:
    found.hint = message.metadata.get("hint", "") or found.hint


def _help(message: Any, found: _Details) -> None:
    found.links += [one.url for one in message.links]


def _localized(message: Any, found: _Details) -> None:
    found.localized = message.message


_UNPACKERS = {
    "BadRequest": _bad_request,
    "QuotaFailure": _subjects,
    "PreconditionFailure": _subjects,
    "RetryInfo": _retry_info,
    "ErrorInfo": _error_info,
    "Help": _help,
    "LocalizedMessage": _localized,
}
