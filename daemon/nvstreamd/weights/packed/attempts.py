"""What did an earlier attempt at the same import leave to go on from? Its journal says so, in the first line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.weights.packed.durable import write_whole

JOURNAL_NAME = "journal.jsonl"
MODEL = re.compile("[0-9a-f]{32}")
LARGEST_WEIGHT = 1 << 40


@dataclass(frozen=True, slots=True)
class Attempt:
    """The decisions that hold for all attempts: the import's name on drives, and each target's share of the stripes."""

    model: str
    weights: tuple[int, ...]


def earlier(path: Path, targets: int, identity_of: Callable[[Attempt], str]) -> Attempt | None:
    """The attempt that the journal is of, if `identity_of` it gives the journal's first line."""
    try:
        with path.open(errors="replace") as file:
            first = file.readline().rstrip("\n")
        found = json.loads(first)
        attempt = Attempt(str(found["model"]), tuple(found["weights"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    plain = all(type(weight) is int and 0 < weight <= LARGEST_WEIGHT for weight in attempt.weights)
    if not plain or len(attempt.weights) != targets or not MODEL.fullmatch(attempt.model):
        return None
    return attempt if identity_of(attempt) == first else None


def begin_journal(path: Path, identity: str) -> dict[str, int]:
    """{segment: checksum} of what the journal vouches for under this identity; it is written anew.

    What is appended must not end up behind half a line.
    """
    known = _known(path, identity)
    lines = [identity, *(json.dumps([name, f"{checksum:016x}"]) for name, checksum in known.items())]
    write_whole(path, "".join(line + "\n" for line in lines).encode())
    return known


def _known(path: Path, identity: str) -> dict[str, int]:
    """The checksums noted, by name, up to the first line that an interruption left unreadable."""
    try:
        first, *lines = path.read_text(errors="replace").split("\n")[:-1]
    except (FileNotFoundError, ValueError):
        return {}
    known: dict[str, int] = {}
    try:
        for line in lines if first == identity else ():
            name, checksum = json.loads(line)
            known[str(name)] = int(checksum, 16)
    except (ValueError, TypeError, RecursionError):
        pass
    return known
