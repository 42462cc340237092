"""What does the service manager give and hear? Sockets, readiness and the log: through its own library where that is.

The library is libsystemd's binding `systemd-python`. Where it is not installed our own code speaks the two protocols
that need none, sd_listen_fds(3) and sd_notify(3), and lines on stderr carry their priority as sd-daemon(3) has it.

The library's own handler of logs is not used: it sends a record's arguments and traceback as fields of their own,
whole, and what a user sent may be in them.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from nvstreamd.errors import ConfigError
from nvstreamd.text import FIELD_BYTES, BoundedFormatter, bounded, log_through

FIRST_FD: Final = 3
STDERR: Final = 2
JOURNAL: Final = "/run/systemd/journal/socket"
REMEDY: Final = "pip install 'nvstreamd[systemd]', or Debian's python3-systemd beside our package"
ABOUT_A_MODEL: Final = "model %s"
# syslog(3) has no level between a warning and an error, and none for what is merely detailed.
PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
LEAST_PRIORITY: Final = 7


class Library(NamedTuple):
    """The two modules of systemd-python that are used here."""

    daemon: Any
    journal: Any


@cache
def library() -> Library | str:
    """systemd's own library, or why there is none."""
    try:
        import systemd.daemon
        import systemd.journal
    except ImportError as error:
        return bounded(f"systemd-python cannot be loaded ({error})", FIELD_BYTES)
    return Library(systemd.daemon, systemd.journal)


def listening_socket() -> socket.socket | None:
    """The socket that systemd passed, None when the daemon was not activated by one.

    Raises ConfigError for several sockets, or one that is no listening Unix stream: a unit file of somebody's own.
    """
    count = _passed()
    if not count:
        return None
    found = library()
    if not isinstance(found, str):
        count = len(found.daemon.listen_fds(unset_environment=False))
    if count > 1:
        raise ConfigError(f"the service manager passed {count} sockets", "leave one ListenStream= in the .socket unit")
    os.set_inheritable(FIRST_FD, False)
    given = socket.socket(fileno=FIRST_FD)
    if (given.family, given.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise ConfigError(f"the service manager passed a socket of {given.family.name}, {given.type.name}",
                          "ListenStream= in the .socket unit is to name a path: users are told apart on Unix sockets")
    return given


def _passed() -> int:
    """How many sockets sd_listen_fds(3) would find."""
    number = os.environ.get("LISTEN_FDS", "")
    return int(number) if os.environ.get("LISTEN_PID") == str(os.getpid()) and number.isdecimal() else 0


def notify(state: str) -> None:
    """Tells the service manager, for instance READY=1; does nothing without one. Raises OSError when it cannot."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    found = library()
    if not isinstance(found, str):
        found.daemon.notify(state)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def way() -> str | None:
    """How this process speaks with the service manager, and why not in the better way; None where none started it."""
    if not (os.environ.get("NOTIFY_SOCKET") or _passed() or stderr_is_the_journal()):
        return None
    found = library()
    if isinstance(found, str):
        return f"the service manager is told by our own code, and its journal gets no fields: {found}; {REMEDY}"
    version = bounded(str(found.daemon.__version__), FIELD_BYTES)
    fields = "its journal gets fields" if stderr_is_the_journal() else "stderr is not its journal"
    return f"the service manager is told through systemd-python {version}; {fields}"


def stderr_is_the_journal() -> bool:
    """True when what is written to stderr goes to the journal: JOURNAL_STREAM of systemd.exec(5) names this file."""
    try:
        there = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of Python's logging."""
    return next((number for least, number in PRIORITIES if level >= least), LEAST_PRIORITY)


class Prefixed(BoundedFormatter):
    """A line with its priority in front: the journal takes it off and keeps it (SyslogLevelPrefix=)."""

    def format(self, record: logging.LogRecord) -> str:
        """See BoundedFormatter; a line that repeats such a prefix further on says nothing by it."""
        return f"<{priority(record.levelno)}>{super().format(record)}"


def log_to_stderr(about: str = "") -> None:
    """Sends the log of this process to stderr, with priorities where that is the journal.

    `about` is the model that an engine's lines are about. An engine may have no socket, so it never uses the library.
    """
    log_through(_to_stderr(about))


def log_to_the_journal() -> None:
    """Sends the log of this process to the journal with fields, where stderr is the journal; to stderr otherwise."""
    found = library() if stderr_is_the_journal() else ""
    log_through(_to_stderr() if isinstance(found, str) else JournalHandler(found.journal.sendv, _to_stderr()))


def _to_stderr(about: str = "") -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Prefixed(about) if stderr_is_the_journal() else BoundedFormatter(about))
    return handler


class JournalHandler(logging.Handler):
    """Sends each record as an entry with fields; what the journal does not take goes to stderr instead.

    `send` takes fields NAME=VALUE and raises OSError.
    """

    def __init__(self, send: Callable[..., object], otherwise: logging.Handler) -> None:
        super().__init__()
        self.send, self.otherwise = send, otherwise
        self.setFormatter(BoundedFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Sends the entry of a record."""
        try:
            # Without it sd_journal_sendv(3) succeeds and sends nothing.
            os.stat(JOURNAL)
            self.send(*(f"{name}={value}" for name, value in fields_of(record, self.format(record)).items()))
        except OSError:
            self.otherwise.emit(record)


def fields_of(record: logging.LogRecord, line: str) -> dict[str, str]:
    """The fields of systemd.journal-fields(7) for a record whose line is `line`, and NVSTREAM_MODEL.

    A value never holds a line end: bounded, or ours.
    """
    found = {"MESSAGE": line, "PRIORITY": str(priority(record.levelno)), "SYSLOG_IDENTIFIER": "nvstreamd",
             "LOGGER": record.name, "CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno),
             "CODE_FUNC": record.funcName or ""}
    # Lines about a model begin with it, everywhere in the daemon.
    if str(record.msg).startswith(ABOUT_A_MODEL) and isinstance(record.args, tuple) and record.args:
        found["NVSTREAM_MODEL"] = bounded(str(record.args[0]), FIELD_BYTES)
    if event := getattr(record, "message_id", None):
        found["MESSAGE_ID"] = str(event)
    return found
