"""What has a stream told so far, and did it end as it should?"""

from __future__ import annotations

from typing import Protocol, TypeVar

from nvstream.errors import Internal
from nvstream.events import Accepted, Delta, Event, Finished
from nvstream.facts import ImportProgress, Model

P_contra = TypeVar("P_contra", contravariant=True)


class Log(Protocol[P_contra]):
    """A listener to a stream's events."""

    def add(self, event: P_contra) -> None: ...
    def close(self) -> None: ...


class Transcript:
    """The text, the request's id and the last event of one generation; no I/O."""

    def __init__(self) -> None:
        self.request_id: str | None = None
        self.finished: Finished | None = None
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """The text of all deltas so far."""
        return "".join(self._parts)

    def add(self, event: Event) -> None:
        """Takes note of one event."""
        match event:
            case Delta():
                self._parts.append(event.text)
            case Accepted():
                self.request_id = event.request_id
            case Finished():
                self.finished = event

    def close(self) -> None:
        """The stream is over. Raises Internal if Finished never came: its text would be cut unnoticed."""
        if self.finished is None:
            raise Internal("the stream ended without saying why")


class ImportLog:
    """The model that an import made, once it did; no I/O."""

    def __init__(self) -> None:
        self.model: Model | None = None

    def add(self, event: ImportProgress | Model) -> None:
        """Takes note of one event."""
        if isinstance(event, Model):
            self.model = event

    def close(self) -> None:
        """The stream is over. Raises Internal if the model never came."""
        if self.model is None:
            raise Internal("the import ended without a model")
