"""How does a test in the guest give the command `nvstreamd`?"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvstreamd.__main__ import main


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    output: str


def nvstreamd(*arguments: str | Path) -> Ended:
    """The command; not as a process of its own, whose imports would take half a minute here."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", ["nvstreamd", *map(str, arguments)])
        status = main()
    return Ended(status, printed.getvalue())
