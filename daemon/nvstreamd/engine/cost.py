"""What did a pass take? Everything that accounts for passes reads it here: usage, status, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvstreamd.pieces import Kind


@dataclass(frozen=True, slots=True)
class Multiplied:
    """Weights, of one kind mostly, that a pass multiplied by `rows` rows, in bytes, and the seconds that took."""

    rows: int
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PassCost:
    """The cost of a pass of `rows` rows: its weights that came from the drive, those in memory, and its `seconds`.

    `read_bytes` came from the drive since the pass before ended; reads were in flight for `read_seconds` of that time.
    The pass stood still and waited for reads for `waited_seconds`. `caused` are the bytes off the drive that each
    request caused: a part of what all need, and the experts that its rows need, shared with others who do. Of experts
    `missed_bytes` were not in memory. `brought_bytes` came into the device's own memory, where it has one;
    `own_bytes` rest there. What the processor multiplied beside such a device is `on_host`, and not in `multiplied`.
    """

    rows: int
    streamed_bytes: int
    resident_bytes: int
    read_bytes: int
    read_seconds: float
    waited_seconds: float
    multiplied: Mapping[Kind, Multiplied]
    seconds: float
    caused: Sequence[float] = ()
    missed_bytes: int = 0
    brought_bytes: int = 0
    own_bytes: int = 0
    on_host: Multiplied | None = None

    @property
    def waits(self) -> list[float]:
        """Seconds that the pass waited for what each request caused; empty where all needed the same."""
        total = sum(self.caused)
        return [self.waited_seconds * each / total for each in self.caused] if self.missed_bytes and total else []
