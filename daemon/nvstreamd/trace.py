"""Where do the milliseconds of a pass go? A trace of reads, products and waits that a browser draws.

The format is the Trace Event Format of Chrome ("JSON Array Format", complete events), for chrome://tracing or Perfetto.
The array is never closed, as the format allows: a trace that ends with its process reads well. Nothing that users sent
is in it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "NVSTREAM_TRACE"
# Then nothing more is written: a drive that fills up harms others.
MOST_BYTES = 1 << 28
FLUSH_EVENTS = 512
MICROSECONDS = 1e6


class Trace:
    """Writes events to `path`, which is made anew. Any thread may tell one; times are time.monotonic()'s."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None
        self._ended = False
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._tracks: dict[str, int] = {}
        self._written = 0

    def open(self, stack: ExitStack) -> None:
        """Makes the file; `stack` closes it. Raises OSError."""
        # For its owner alone, and never through a link that somebody left in a shared directory.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = stack.enter_context(io.FileIO(os.open(self.path, flags, 0o600), "w"))
        self._lines.append("[\n")
        stack.callback(self._flush)

    def event(self, track: str, name: str, begin: float, end: float, **details: int) -> None:
        """Tells what went on from `begin` to `end`, in seconds; each track is drawn as a line."""
        with self._lock:
            if track not in self._tracks:
                self._tracks[track] = len(self._tracks) + 1
                self._lines.append(self._line({"ph": "M", "name": "thread_name", "args": {"name": track}}, track))
            self._lines.append(self._line({
                "ph": "X", "name": name, "ts": round(begin * MICROSECONDS, 1),
                "dur": round((end - begin) * MICROSECONDS, 1), "args": details}, track))
            full = len(self._lines) >= FLUSH_EVENTS
        if full:
            self._flush()

    def _line(self, event: Mapping[str, object], track: str) -> str:
        return json.dumps({**event, "pid": os.getpid(), "tid": self._tracks[track]}) + ",\n"

    def _flush(self) -> None:
        with self._lock:
            text = "".join(self._lines)
            self._lines.clear()
            if self._ended or self._file is None:
                return
            self._written += len(text)
            self._ended = self._written > MOST_BYTES
            if self._ended:
                return
            try:
                self._file.write(text.encode())
            except OSError as error:
                # Whoever is served does not pay for whoever looks.
                self._ended = True
                log.warning("the trace %s ends here: %s", self.path, error.strerror)


def open_trace(environment: Mapping[str, str], stack: ExitStack) -> tuple[Trace | None, list[str]]:
    """The trace that NVSTREAM_TRACE asks for, our process id in its name; a note says where it is, or why not."""
    asked = environment.get(VARIABLE)
    if not asked:
        return None, []
    path = Path(asked)
    trace = Trace(path.with_name(f"{path.stem}-{os.getpid()}{path.suffix}"))
    try:
        trace.open(stack)
    except OSError as error:
        return None, [f"no trace: {trace.path}: {error.strerror}"]
    return trace, [f"writes a trace to {trace.path}, of at most {MOST_BYTES >> 20} MiB"]
