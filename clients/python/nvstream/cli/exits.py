"""With which exit code does the command end, and what does it say on the way out?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum

import typer

from nvstream.cli.output import error_line, printable
from nvstream.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NvstreamError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)


class ExitCode(IntEnum):
    """The meanings of the exit codes; part of the command's interface."""

    OK = 0
    OTHER = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    PERMISSION = 5
    QUOTA = 6
    PRECONDITION = 7
    DEADLINE = 8
    INTERRUPTED = 130


_CODES: tuple[tuple[type[NvstreamError], ExitCode], ...] = (
    (InvalidArgument, ExitCode.USAGE),
    (Unavailable, ExitCode.UNAVAILABLE),
    (NotFound, ExitCode.NOT_FOUND),
    (PermissionDenied, ExitCode.PERMISSION),
    (ResourceExhausted, ExitCode.QUOTA),
    (FailedPrecondition, ExitCode.PRECONDITION),
    (Aborted, ExitCode.PRECONDITION),
    (DeadlineExceeded, ExitCode.DEADLINE),
)

EXIT_CODES_HELP = (
    "Exit codes: 0 ok (also when the reader of a pipe has had enough), 1 other, 2 usage or a bad argument, "
    "3 no daemon answers, 4 not found, 5 permission, 6 quota or queue full, 7 precondition or model error, "
    "8 deadline passed, 130 interrupted."
)


@contextmanager
def guard(as_json: bool) -> Iterator[None]:
    """Turns what a command raises into a message (and a line of JSON if `as_json`) and an exit code."""
    try:
        yield
    except NvstreamError as error:
        code = exit_code(error)
        if as_json:
            _print_json_error(error)
        report(error)
        raise typer.Exit(code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except BrokenPipeError as error:
        _hush(sys.stdout)
        raise typer.Exit(ExitCode.OK) from error
    except OSError as error:
        _hush(sys.stdout)
        _say(f"nvstream: {error}")
        raise typer.Exit(ExitCode.OTHER) from error


def exit_code(error: NvstreamError) -> ExitCode:
    """The exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.OTHER)


def report(error: NvstreamError) -> None:
    """Says on stderr what went wrong, where exactly, and what to do."""
    _say(f"nvstream: {error.message}")
    for one in error.violations:
        # The daemon's only violation often repeats the message; then where it is suffices.
        _say(f"  {one.subject}: {one.description}" if one.description != error.message else f"  at {one.subject}")
    if error.retry_after is not None:
        _say(f"  try again in {error.retry_after:g} s")
    if error.hint:
        _say(f"  hint: {error.hint}")
    for link in error.links:
        _say(f"  see {link}")


def _print_json_error(error: NvstreamError) -> None:
    with suppress(OSError):
        sys.stdout.write(error_line(error) + "\n")
        sys.stdout.flush()


def _say(line: str) -> None:
    # A reader of stderr that went away changes nothing about the exit code.
    with suppress(OSError):
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()


def _hush(stream: object) -> None:
    """Sends what is still buffered nowhere, or the interpreter complains about it when it exits."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())  # type: ignore[attr-defined]
        os.close(descriptor)
