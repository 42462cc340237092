"""How does a machine that somebody recorded come back as a tree of files? (tests/fixtures/machines/*.tree)"""

from __future__ import annotations

import os
from pathlib import Path

from nvstreamd.hardware.record import ANSWERS, LINK, PRESENT, answer_of, unescape
from nvstreamd.hardware.system import Ran, System

# A FIFO of a machine that a daemon runs on: a byte in it is an uevent that says that a disk came.
UEVENTS = "uevents"
# A file with the address of a function that is overlooked once (support.recorded_daemon).
HIDDEN = "hidden"
MACHINES = Path(__file__).resolve().parents[1] / "fixtures/machines"


class Recorded(System):
    """A machine that can be looked at and not be changed.

    Where a tree written by hand does not say so, blkid finds nothing and the kernel holds what has holders.
    """

    def run(self, *command: str) -> Ran:
        """See System."""
        assert command[0] == "blkid", f"a recorded machine runs nothing: {command}"
        try:
            status, _, output = (self.root / answer_of(*command)).read_text().partition("\n")
        except FileNotFoundError:
            return Ran(2, "")
        return Ran(int(status), output)

    def is_held(self, device: str) -> bool | None:
        """See System."""
        said = self.read(f"{ANSWERS}/held/{device}")
        if said is None:
            return bool(self.names(f"sys/class/block/{device}/holders"))
        return {"True": True, "False": False, "None": None}[said]


def load(name: str, root: Path) -> Recorded:
    """The files of one of our machines below `root`."""
    return load_tree((MACHINES / f"{name}.tree").read_text(), root)


def load_blank(root: Path, disk_bytes: int) -> None:
    """The lab's machine below `root`, both drives blank: files stand in for their block devices."""
    load("qemu-q35", root)
    (root / "answers/blkid/nvme1n1").write_text("2\n")
    (root / "dev").mkdir(exist_ok=True)
    os.mkfifo(root / UEVENTS)
    for name in ("nvme0n1", "nvme1n1"):
        with (root / "dev" / name).open("wb") as disk:
            disk.truncate(disk_bytes)


def load_tree(tree: str, root: Path) -> Recorded:
    """The files of a tree below `root`."""
    # Split at the one line end that there is: others, such as U+2028, are not escaped in a tree written by hand.
    for line in tree.split("\n"):
        if line and not line.startswith("#"):
            _place(root, *line.split("\t", 1))
    return Recorded(root)


def _place(root: Path, path: str, content: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if content == PRESENT:
        target.mkdir(exist_ok=True)
    elif content.startswith(LINK):
        os.symlink(content.removeprefix(LINK), target)
    else:
        target.write_bytes(unescape(content))
