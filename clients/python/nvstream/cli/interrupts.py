"""How does Ctrl-C stop a stream without breaking it? It cancels the call; it never breaks into gRPC's own locks.

Python raises KeyboardInterrupt between any two steps of the main thread. While that waits inside gRPC, for the next
event, the locks there would be left in a state that makes the next call hang or fail.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Generic, Protocol, Self, TypeVar

from nvstream.errors import Cancelled

E_co = TypeVar("E_co", covariant=True)


class _Stream(Protocol[E_co]):
    def __next__(self) -> E_co: ...
    def cancel(self) -> None: ...


class Interruptible(Generic[E_co]):
    """A stream's events, inside a with block; on Ctrl-C they end with KeyboardInterrupt, the call cancelled.

    Between events Ctrl-C is what it always is: a write that blocks is broken off at once.
    """

    def __init__(self, stream: _Stream[E_co]) -> None:
        self._stream = stream
        self._reading = False
        self._pressed = False
        self._installed = False

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        # A program that ignores or handles Ctrl-C itself goes on doing so.
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._press)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __iter__(self) -> Iterator[E_co]:
        return self

    def __next__(self) -> E_co:
        """The next event. Raises KeyboardInterrupt, and what the stream raises."""
        self._reading = True
        try:
            event = next(self._stream)
        except Cancelled:
            if self._pressed:
                raise KeyboardInterrupt from None
            raise
        finally:
            self._reading = False
        if self._pressed:
            raise KeyboardInterrupt
        return event

    def _press(self, number: int, frame: FrameType | None) -> None:
        if not self._reading:
            raise KeyboardInterrupt
        self._pressed = True
        # In a thread of its own: the main one may hold the very lock that cancelling takes.
        threading.Thread(target=self._stream.cancel, name="cancel").start()
