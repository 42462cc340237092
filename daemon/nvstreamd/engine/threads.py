"""What happens when a thread of the engine ends by an error? It is noticed: the engine ends, and is replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from nvstreamd.text import places

log = logging.getLogger(__name__)


class ThreadLost(Exception):
    """A thread ended by an error. It is none of ours: the daemon takes the engine for lost, not the model for unfit."""


class Threads:
    """Runs threads. `failed` is called in a thread that ended by an exception, whatever exception it was."""

    def __init__(self, failed: Callable[[ThreadLost], None]) -> None:
        self._failed = failed

    def run(self, name: str, life: Callable[[], None]) -> None:
        """Starts a thread that lives as long as `life` takes, at most as long as the process."""
        threading.Thread(target=lambda: self._live(name, life), name=name, daemon=True).start()

    def _live(self, name: str, life: Callable[[], None]) -> None:
        try:
            life()
        except Exception as error:
            # First of all: what there is no memory for is the line in the log.
            self._failed(ThreadLost(name))
            log.error("thread %s ended: %s", name, places(error, with_text=False))
