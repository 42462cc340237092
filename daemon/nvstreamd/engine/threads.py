"""What happens when a thread of the engine ends by an error? It is noticed: the engine says so and ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from nvstreamd.errors import NvstreamError, unexpected
from nvstreamd.text import places

log = logging.getLogger(__name__)


class Threads:
    """Runs threads. `failed` is called in a thread that ended by an exception, whatever exception it was."""

    def __init__(self, failed: Callable[[NvstreamError], None]) -> None:
        self._failed = failed

    def run(self, name: str, life: Callable[[], None]) -> None:
        """Starts a thread that lives as long as `life` takes, at most as long as the process."""
        threading.Thread(target=lambda: self._live(name, life), name=name, daemon=True).start()

    def _live(self, name: str, life: Callable[[], None]) -> None:
        try:
            life()
        except Exception as error:
            found = unexpected(error, f"thread {name}")
            found.fatal = True
            # First of all: what there is no memory for is the line in the log.
            self._failed(found)
            log.error("thread %s ended: %s", name, places(error, with_text=False))
