"""Who hears that a drive has come, found by the kernel after our start or plugged in later?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack

from nvstreamd.hardware.uevents import Uevents

log = logging.getLogger(__name__)

# A drive's namespaces come one after the other: what is on all of them decides whether it may be taken.
SETTLED_SECONDS = 1.0


class Arrivals:
    """Calls `came` once disks of NVMe drives have come and none came after them for a moment."""

    def __init__(self, uevents: Uevents, came: Callable[[], None]) -> None:
        self.uevents = uevents
        self.came = came
        self._timer: asyncio.TimerHandle | None = None

    def start(self, stack: ExitStack) -> None:
        """Begins to listen; `stack` ends it."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.uevents.fileno(), self._heard)
        stack.callback(self._stop)

    def _stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.uevents.fileno())
        self._cancel()

    def _heard(self) -> None:
        if self.uevents.disk_came():
            self._cancel()
            self._timer = asyncio.get_running_loop().call_later(SETTLED_SECONDS, self._settled)

    def _settled(self) -> None:
        log.info("the kernel has a new disk of an NVMe drive")
        self.came()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
