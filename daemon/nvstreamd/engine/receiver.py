"""What becomes of a command of the daemon? A call is prepared elsewhere, a cancel overtakes whatever waits.

This thread does nothing whose length a caller chooses: it looks at lengths, and hands on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue

from nvstreamd.engine import commands
from nvstreamd.engine.channel import Channel
from nvstreamd.engine.preparation.preparer import Preparer
from nvstreamd.errors import ProtocolError, unexpected
from nvstreamd.text import places

log = logging.getLogger(__name__)

Command = Callable[[], None]


class Receiver:
    """Reads commands until the daemon is gone; then None is in `commands`. `cancel` is run by whoever obeys those."""

    def __init__(self, channel: Channel, preparer: Preparer, commands: SimpleQueue[Command | None],
                 cancel: Callable[[int], None]) -> None:
        self.channel = channel
        self.preparer = preparer
        self.commands = commands
        self._cancel = cancel

    def receive(self) -> None:
        """The life of the thread."""
        while (command := self.channel.receive()) is not None:
            self._take(command)
        self.commands.put(None)

    def _take(self, command: commands.Command) -> None:
        match command:
            case commands.Cancel(number):
                if not self.preparer.cancel(number):
                    self.commands.put(lambda: self._cancel(number))
            case commands.Run() | commands.Encode():
                self._submit(command)
            case _:
                raise ProtocolError(f"{type(command).__name__} to an engine that serves")

    def _submit(self, call: commands.Call) -> None:
        try:
            self.preparer.submit(call)
        except Exception as found:
            error = unexpected(found, "taking the request")
            if error is not found:
                log.error("taking a request: %s", places(found, with_text=False))
            self.channel.fail(error, call.id)
