"""What is a client told while its request lives? The events of a stream, in the daemon's own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from google.protobuf.message import Message

# Bytes that an event takes on a connection, at most, beside text and lists.
SMALL = 64


class Phase(Enum):
    """What a request is at that has no token yet, or no engine."""

    QUEUED = auto()
    LOADING = auto()
    PREFILL = auto()
    RECOVERING = auto()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine has it; `queue_position` 0: it takes part in the next pass."""

    request_id: str
    queue_position: int
    eta_seconds: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on a connection, about."""
        return SMALL + len(self.request_id)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: tokens of the prompt, or of the requests that were ahead, how many have gone."""

    phase: Phase
    done: int = 0
    total: int = 0
    eta_seconds: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on a connection, about."""
        return SMALL


@dataclass(slots=True, eq=False)
class Delta:
    """What is new of an answer. It grows while nobody has read it.

    `payload` is the engine's message, an nvstream.v1.Delta: it goes to the client as it came, copied by nobody before
    the client's own message is made. Nothing here reads more of it than `token_ids`, which is a view of its list, and
    `first_text`, its text: what was joined to that since is in `text` alone.
    """

    payload: Message
    token_ids: Sequence[int]
    first_text: str
    nbytes: int
    # UTF-8: what is added to a string is copied with all that is there, and a list of strings takes ten times as much.
    _later: bytearray | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        return self.first_text if self._later is None else self.first_text + self._later.decode()

    def join(self, later: Delta) -> None:
        """Takes over what came after it: of two deltas text, ids and log probabilities are those of one."""
        # protobuf's own: lists become one, and of the text, which is here, the later is left.
        self.payload.MergeFrom(later.payload)
        if self._later is None:
            self._later = bytearray()
        self._later += later.text.encode()
        self.nbytes += later.nbytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer. `payload`, an nvstream.v1.Finished, says why, and what it took; nothing here reads it."""

    payload: Message

    @property
    def nbytes(self) -> int:
        """Bytes on a connection."""
        return self.payload.ByteSize()


Event = Accepted | Progress | Delta | Finished
