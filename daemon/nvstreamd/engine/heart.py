"""How does the daemon know that an engine lives, and that its work moves? The engine says so once a second."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.reports import Beat
from nvstreamd.engine.threads import ThreadLost, Threads
from nvstreamd.engine.to_daemon import beat_message

BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Signs:
    """The signs of an engine's work at the moment: see engine.proto, Beat. `pass_began` is of time.monotonic."""

    steps: int
    work: bool
    pass_began: float | None = None


class Heart:
    """Sends what `signs` returns, once a second, from a thread of its own. An error of that thread goes to `failed`.

    The engine replaces both once it can tell more. It beats before that, for the daemon takes an engine without beats
    for frozen.
    """

    def __init__(self, channel: Channel, signs: Callable[[], Signs]) -> None:
        self.channel = channel
        self.signs = signs
        self.failed: Callable[[ThreadLost], None] = lambda error: None
        self._over = threading.Event()

    def start(self, stack: ExitStack) -> None:
        """Beats from now on; `stack` ends it."""
        stack.callback(self._over.set)
        Threads(self._end).run("heart", self._beat)

    def _end(self, error: ThreadLost) -> None:
        self.failed(error)

    def _beat(self) -> None:
        while not self._over.is_set():
            signs = self.signs()
            since = None if signs.pass_began is None else time.monotonic() - signs.pass_began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            beat = Beat(steps=signs.steps, work=signs.work, pass_seconds=since, peak_bytes=peak)
            try:
                self.channel.send(beat_message(beat))
            except OSError:
                return
            self._over.wait(BEAT_SECONDS)
