"""What can go wrong for a caller, as which exception, and what should he do about it?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that was wrong: a field's path, a quota's subject or a precondition's subject, and why."""

    subject: str
    description: str


class NvstreamError(Exception):
    """Base of every error of this package.

    `status` is the gRPC status by name, `message` what happened, `hint` what to do about it (may be empty),
    `retry_after` seconds to wait before trying again (None: the daemon did not say), `violations` what
    exactly was wrong, `links` pages that help.
    """

    status = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after: float | None = None,
        violations: tuple[Violation, ...] = (),
        links: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after
        self.violations = violations
        self.links = links

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidArgument(NvstreamError):
    """An argument is wrong; `violations` name the fields."""

    status = "INVALID_ARGUMENT"


class NotFound(NvstreamError):
    """There is no such model, file or request."""

    status = "NOT_FOUND"


class PermissionDenied(NvstreamError):
    """The caller may not do this."""

    status = "PERMISSION_DENIED"


class ResourceExhausted(NvstreamError):
    """A queue, a quota or a disk is full; try again after `retry_after` seconds, if the daemon names them.

    `violations` name the quota.
    """

    status = "RESOURCE_EXHAUSTED"


class FailedPrecondition(NvstreamError):
    """The model's or the machine's state does not allow it: not loaded, budget too small, broken file."""

    status = "FAILED_PRECONDITION"


class Aborted(NvstreamError):
    """Engines died whenever this request was there, so it is not tried again. Others go on."""

    status = "ABORTED"


class Unavailable(NvstreamError):
    """No daemon answers at the socket, it is shutting down, or the connection broke."""

    status = "UNAVAILABLE"


class DeadlineExceeded(NvstreamError):
    """The call's `timeout` passed."""

    status = "DEADLINE_EXCEEDED"


class Cancelled(NvstreamError):
    """The call was cancelled, by this program or by the daemon."""

    status = "CANCELLED"


class Internal(NvstreamError):
    """The daemon or the connection broke its own rules; a bug to report."""

    status = "INTERNAL"
