"""What can go wrong, as which gRPC status, and what should the user do about it?"""

from __future__ import annotations

from collections.abc import Sequence

from nvstreamd.text import FIELD_BYTES, HINT_BYTES, MESSAGE_BYTES, bounded

STATUSES = frozenset((
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
))
# The fields of NotEnoughMemory and of CardLost, by which they are known behind the socket pair.
MEMORY = "memory"
CARD_FIELD = "card"


class NvstreamError(Exception):
    """Base of every error that a user sees. `status` is a grpc.StatusCode name, `hint` says what to do.

    Its texts are bounded, and have no control characters, whatever they repeat.
    """

    status = "INTERNAL"
    fatal = False

    def __init__(self, message: str, hint: str = "", *, field: str = "") -> None:
        # Errors of other trees end in their hint: nobody wants to read it twice.
        said = message.removesuffix(f" ({hint})").removesuffix(f"; {hint}") if hint else message
        self.message = bounded(said, MESSAGE_BYTES)
        self.hint = bounded(hint, HINT_BYTES)
        self.field = bounded(field, FIELD_BYTES)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(NvstreamError):
    """A field of the call is wrong; `field` names it (google.rpc.BadRequest)."""

    status = "INVALID_ARGUMENT"


class NotServed(NvstreamError):
    """A method that a standard service has and this daemon does not."""

    status = "UNIMPLEMENTED"


class NotFound(NvstreamError):
    """There is no such model or request."""

    status = "NOT_FOUND"


class DriveMissing(NotFound):
    """A drive is not there, or not all of it yet. Its model moves to it when it comes (supervisor.arrivals)."""


class PermissionDenied(NvstreamError):
    """The caller's uid may not do this (see api.permissions)."""

    status = "PERMISSION_DENIED"


class QuotaExceeded(NvstreamError):
    """The queue, or the caller's share of something, is full (google.rpc.QuotaFailure, RetryInfo).

    `retry_seconds` says when to come back.
    """

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, hint: str, *, field: str, retry_seconds: float = 5.0) -> None:
        super().__init__(message, hint, field=field)
        self.retry_seconds = retry_seconds


class NotRead(NvstreamError):
    """The client does not read what its stream has for it."""

    status = "RESOURCE_EXHAUSTED"


class BudgetTooSmall(NvstreamError):
    """The memory budget cannot hold what a pass needs; the message has the smallest workable figure."""

    status = "FAILED_PRECONDITION"


class NotEnoughMemory(NvstreamError):
    """A model is to take more than the machine, or a control group, has left. Its field is always MEMORY."""

    status = "FAILED_PRECONDITION"


class BadModelFile(NvstreamError):
    """A model file is truncated, corrupt, hostile or of a kind not supported; `field` names what in it."""

    status = "FAILED_PRECONDITION"
    fatal = True


class ModelChanged(NvstreamError):
    """A model's file changed while the model was in use."""

    status = "FAILED_PRECONDITION"
    fatal = True


class ModelNotReady(NvstreamError):
    """The model is not loaded, or on its way."""

    status = "FAILED_PRECONDITION"


class ModelBusy(NvstreamError):
    """The model is loaded, or being imported, and what was asked for needs one that is not."""

    status = "FAILED_PRECONDITION"


class StorageFull(NvstreamError):
    """A write found no space."""

    status = "RESOURCE_EXHAUSTED"


class StorageError(NvstreamError):
    """A read or a write of a model's bytes failed."""

    status = "UNAVAILABLE"
    fatal = True


class StorageRefused(NvstreamError):
    """A place cannot be written to or read as it is: read-only, forbidden, no directory. Trying again does not help."""

    status = "FAILED_PRECONDITION"
    fatal = True


class EngineLost(NvstreamError):
    """An engine died."""

    status = "UNAVAILABLE"


class CardLost(EngineLost):
    """An engine ended for its card, which failed: another may do without. Its field is always CARD_FIELD."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, field=CARD_FIELD)


class EnginePaused(EngineLost):
    """Engines died one after the other; `retry_seconds` says when the next one is started."""

    def __init__(self, message: str, hint: str, *, retry_seconds: float) -> None:
        super().__init__(message, hint)
        self.retry_seconds = retry_seconds


class PoisonedRequest(NvstreamError):
    """A call was there whenever engines died, and the last time it was alone."""

    status = "ABORTED"


class Draining(NvstreamError):
    """The daemon is shutting down."""

    status = "UNAVAILABLE"


class RequestCancelled(NvstreamError):
    """The client went away."""

    status = "CANCELLED"


class DeadlinePassed(NvstreamError):
    """The call's deadline passed."""

    status = "DEADLINE_EXCEEDED"


class ConfigError(NvstreamError):
    """The configuration is wrong; the message names file and key."""

    status = "FAILED_PRECONDITION"


class ProtocolError(NvstreamError):
    """The other end of the socket pair said something it may not say."""

    status = "INTERNAL"
    fatal = True


class KernelError(NvstreamError):
    """The library of C++ kernels does not fit, could not start or refused a call."""

    status = "INTERNAL"
    fatal = True


class HardwareError(NvstreamError):
    """A change of the machine was not made, or did not have its effect."""

    status = "FAILED_PRECONDITION"


class ClaimRefused(NvstreamError):
    """A drive may not be taken; `reasons` has them all (hardware.eligibility.Refusal)."""

    status = "FAILED_PRECONDITION"

    def __init__(self, message: str, hint: str, reasons: Sequence[object]) -> None:
        super().__init__(message, hint)
        self.reasons = tuple(reasons)


class DriveInUse(NvstreamError):
    """A drive cannot be opened now: somebody else has it, or it is claimed."""

    status = "FAILED_PRECONDITION"


class BadVolume(NvstreamError):
    """A volume that nvstreamd once wrote to a drive is damaged, of a later version, or a copy of another drive's."""

    status = "FAILED_PRECONDITION"


class JournalError(NvstreamError):
    """The journal of claims is in use, or a claim in it cannot be understood."""

    status = "FAILED_PRECONDITION"


def from_wire(status: str, message: str, hint: str, field: str) -> NvstreamError:
    """The error that an engine reported, with the status it named. An engine may report anything."""
    if field == CARD_FIELD:
        return CardLost(message, hint)
    error = NvstreamError(message, hint, field=field)
    error.status = status if status in STATUSES else "INTERNAL"
    return error


def unexpected(error: Exception, what: str) -> NvstreamError:
    """Any exception as an error of ours: itself if it is one, otherwise INTERNAL, saying its kind and `what` failed.

    The text of a foreign exception may hold what another user sent, so it is left out.
    """
    if isinstance(error, NvstreamError):
        return error
    return NvstreamError(f"{what} failed: {type(error).__name__}", "the log says where; report it")
