"""What does the daemon know of a model? What its file tells, where its weights rest, and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path


class State(Enum):
    """How a model is."""

    UNLOADED = auto()
    LOADING = auto()
    SERVING = auto()
    # Its engine died and is being replaced; streams wait.
    RECOVERING = auto()
    FAILED = auto()


class Format(Enum):
    """How a model's weights lie in its files."""

    UNKNOWN = auto()
    GGUF = auto()
    PACKED = auto()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's file tells without a weight being read: see nvstream.v1.ModelFacts. Sizes are in bytes.

    An engine that has not been asked yet has told nothing.
    """

    architecture: str = ""
    format: Format = Format.UNKNOWN
    weight_bytes: int = 0
    layers: int = 0
    context_length: int = 0
    vocabulary_size: int = 0
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)
    minimum_budget: int = 0
    bytes_per_token: int = 0
    kv_bytes_per_token: int = 0
    description: str = ""
    readers: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the weights rest, what was measured, what is expected of a pass: see nvstream.v1.Placement.

    `budget` and `kv_budget` are ceilings in bytes, 0 before an engine has planned them.
    """

    budget: int = 0
    resident_bytes: int = 0
    slot_bytes: int = 0
    streamed_bytes_per_pass: int = 0
    read_bytes_per_second: float = 0.0
    predicted_pass_seconds: float = 0.0
    measured_pass_seconds: float | None = None
    backend: str = ""
    notes: tuple[str, ...] = ()
    kernel: str = ""
    arithmetic: str = ""
    kv_budget: int = 0
    vram: int = 0
    vram_resident_bytes: int = 0
    link_bytes_per_pass: int = 0
    link_bytes_per_second: float = 0.0
    host_bytes_per_pass: int = 0
    host_bytes_per_second: float = 0.0

    def noting(self, *notes: str) -> Placement:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as everybody is told of it. `facts` are None where nobody has looked into its file."""

    name: str
    path: Path
    state: State = State.UNLOADED
    facts: ModelFacts | None = None
    placement: Placement | None = None
    error: str = ""
