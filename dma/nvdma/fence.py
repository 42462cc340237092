"""When is work done that was only begun? A fence says so; what comes after takes it along instead of waiting."""

from __future__ import annotations

from typing import Protocol


class Fence(Protocol):
    """A point in a device's work. `str()` says what is waited for."""

    def done(self) -> bool:
        """True once all work before the fence has ended."""

    def wait(self, seconds: float) -> bool:
        """Waits that long at most; True once all work before the fence has ended."""


class Done:
    """The fence of work that had ended before anybody asked: a processor's, whose calls return when they are done."""

    def __str__(self) -> str:
        return "nothing"

    def done(self) -> bool:
        """True always."""
        return True

    def wait(self, seconds: float) -> bool:
        """True at once."""
        return True


DONE = Done()
