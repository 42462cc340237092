"""What follows on an engine that died? Another at once; after a few in a row another route, or growing pauses.

In a pause nobody waits: calls are refused, saying when the next engine is started.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from nvstreamd.errors import MEMORY, CardLost, EngineLost, EnginePaused, NvstreamError
from nvstreamd.supervisor.deployment import Deployment
from nvstreamd.supervisor.reports import Loaded

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Recovery:
    """Replaces the engines of one model. At most `most` in a row without a pause; `pausing` hears when one begins."""

    def __init__(self, name: str, deployment: Deployment, most: int, pausing: Callable[[EnginePaused], None]) -> None:
        self.name = name
        self.replaced = 0
        self._deployment = deployment
        self._most = most
        self._pausing = pausing
        self._in_a_row = 0
        self._pause: tuple[str, float] | None = None

    def progressed(self) -> None:
        """Notes that the engine does what it is for."""
        self._in_a_row = 0

    def check_no_pause(self) -> None:
        """Raises EnginePaused between engines that died one after the other."""
        if self._pause is not None:
            message, ends = self._pause
            raise self._paused(message, ends - time.monotonic())

    async def another(self, cause: NvstreamError) -> Loaded:
        """Another engine, which goes on behind the tokens already sent. Raises NvstreamError."""
        try:
            return await self._replace(cause)
        except NvstreamError as error:
            await self._deployment.give_up(error)
            self._in_a_row = 0
            return await self._deployment.begin()

    async def _replace(self, cause: NvstreamError) -> Loaded:
        """Another engine on the same route, unless that is what failed. Raises NvstreamError."""
        if not isinstance(cause, EngineLost):
            raise cause
        while True:
            if isinstance(cause, CardLost):
                self._deployment.card_failed(cause)
            self._in_a_row += 1
            self.replaced += 1
            if self._in_a_row > self._most:
                if self._deployment.has_other:
                    raise cause
                await self._wait(cause)
            try:
                return await self._deployment.restart()
            except EngineLost as error:
                cause = error
            except NvstreamError as error:
                if error.field != MEMORY:
                    raise
                # There was enough before: somebody else has it for now.
                cause = EngineLost(error.message, error.hint)

    async def _wait(self, cause: EngineLost) -> None:
        """Waits longer after each engine that died."""
        beyond = self._in_a_row - self._most
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(beyond - 1, 10))
        message = f"{cause.message}, after {self._in_a_row - 1} replacements in a row"
        log.error("model %s: %s; another is started in %.0f s", self.name, message, seconds)
        self._pause = message, time.monotonic() + seconds
        self._pausing(self._paused(message, seconds))
        try:
            await asyncio.sleep(seconds)
        finally:
            self._pause = None

    def _paused(self, message: str, seconds: float) -> EnginePaused:
        left = max(1.0, seconds)
        return EnginePaused(f"model {self.name}: {message}", f"it is started again in {math.ceil(left)} s",
                            retry_seconds=left)
