"""How much of somebody else's text do errors, logs and statuses repeat? Little, and nothing but plain characters."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType

# Together under the 8 KiB of metadata that gRPC clients take: the text goes there three times, in ASCII.
MESSAGE_BYTES = 800
HINT_BYTES = 400
FIELD_BYTES = 128
LOG_BYTES = 2000
CUT = "…"


def bounded(text: str, most: int) -> str:
    """The text in one line and at most `most` bytes of UTF-8; what cannot be printed becomes U+FFFD.

    It takes time for what it keeps, however long the text is.
    """
    kept = "".join(" " if char.isspace() else char if char.isprintable() else "\ufffd" for char in text[:most])
    encoded = kept.encode()
    if len(text) <= most and len(encoded) <= most:
        return kept
    return encoded[: most - len(CUT.encode())].decode(errors="ignore") + CUT


class BoundedFormatter(logging.Formatter):
    """Formats a record as one line, whatever is in it; the places of a traceback follow it, without their texts.

    With `about`, a model's name, lines begin with the time and it: of several engines nobody else could tell whose.
    """

    def __init__(self, about: str = "") -> None:
        super().__init__()
        self.about = bounded(about, FIELD_BYTES)

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, at most `LOG_BYTES` long."""
        line = f"{record.levelname} {record.name}: {record.getMessage()}"
        if self.about:
            made = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            line = f"{made} {self.about}: {line}"
        if record.exc_info and record.exc_info[1] is not None:
            line += f": {places(record.exc_info[1])}"
        return bounded(line, LOG_BYTES)


def places(error: BaseException, with_text: bool = True) -> str:
    """The kind of an exception, the beginning of its text, and the innermost places it passed through.

    `with_text` is for exceptions whose text cannot be a user's.
    """
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = ", ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    said = f": {bounded(str(error), HINT_BYTES)}" if with_text else ""
    return f"{type(error).__name__}{said} at {where or 'an unknown place'}"


def log_through(handler: logging.Handler) -> None:
    """Sends the log of this process through one handler, and what ends its threads too."""
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda ended: _uncaught(ended.exc_type, ended.exc_value, ended.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        # An engine's may repeat what a user sent.
        logging.getLogger("nvstreamd").critical("%s", places(error.with_traceback(trace), with_text=False))
