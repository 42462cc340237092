"""What do the services of the edge share?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.api.guard import Guard
from nvstreamd.api.health import Health
from nvstreamd.supervisor.admission import Admission
from nvstreamd.supervisor.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Parts:
    """The daemon's parts. `notes`, which may grow, say what it does without."""

    guard: Guard
    catalog: Catalog
    admission: Admission
    health: Health
    notes: Sequence[str]
