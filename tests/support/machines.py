"""How does a machine that somebody recorded come back as a tree of files? (tests/fixtures/machines/*.tree)"""

from __future__ import annotations

import os
from pathlib import Path

from nvstreamd.hardware.system import Ran, System

MACHINES = Path(__file__).resolve().parents[1] / "fixtures/machines"
LINK = "-> "


class Recorded(System):
    """A machine that can be looked at and not be changed. blkid finds nothing on it, and the kernel holds what its
    files say."""

    def run(self, *command: str) -> Ran:
        """See System."""
        assert command[0] == "blkid", f"a recorded machine runs nothing: {command}"
        return Ran(2, "")

    def is_held(self, device: str) -> bool | None:
        """See System."""
        return bool(self.names(f"sys/class/block/{device}/holders"))


def load(name: str, root: Path) -> Recorded:
    """The machine's files below `root`."""
    for line in (MACHINES / f"{name}.tree").read_text().splitlines():
        if line.startswith("#"):
            continue
        path, _, content = line.partition("\t")
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith(LINK):
            os.symlink(content.removeprefix(LINK), target)
        else:
            target.write_text(content.replace("\\n", "\n") + "\n")
    return Recorded(root)
