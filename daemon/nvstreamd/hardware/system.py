"""How is the machine read, changed and heard? All that touches sysfs, procfs or a program goes through here."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.hardware.uevents import NetlinkUevents, Uevents

COMMAND_SECONDS = 30.0
# Nothing else is ever started from here, whatever a caller has been talked into.
PROGRAMS = frozenset({"modprobe", "blkid"})


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    status: int
    output: str


class System:
    """The machine below `root`, "/" for the real one. Paths are relative to it; a missing file is a fact, no error."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        """A file's text without what surrounds it, None when it is not there or may not be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def read_bytes(self, path: str) -> bytes | None:
        """A file's bytes, None when it is not there or may not be read."""
        try:
            return (self.root / path).read_bytes()
        except OSError:
            return None

    def link(self, path: str) -> str | None:
        """The last part of what a symbolic link points at, None when there is none."""
        try:
            return os.path.basename(os.readlink(self.root / path))
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none when it is not there."""
        try:
            return sorted(os.listdir(self.root / path))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """True when there is such a path."""
        return os.path.exists(self.root / path)

    def write(self, path: str, text: str) -> None:
        """Writes an attribute of sysfs, in one write(2) as the kernel wants it. Raises OSError."""
        fd = os.open(self.root / path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def is_held(self, device: str) -> bool | None:
        """True while the kernel has a block device in use: mounted anywhere, in an array, as swap (open(2), O_EXCL).

        None when it cannot be asked.
        """
        try:
            os.close(os.open(self.root / "dev" / device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            return True if error.errno == errno.EBUSY else None
        return False

    def open_device(self, device: str, flags: int) -> int:
        """A descriptor of a block device. Raises OSError."""
        return os.open(self.root / "dev" / device, flags)

    def is_open(self, path: str) -> bool:
        """True while a process has a device node open that only one may have."""
        try:
            os.close(os.open(self.root / path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def uevents(self) -> Uevents:
        """The kernel's events from now on. Raises HardwareError where they cannot be heard."""
        return NetlinkUevents()

    def run(self, *command: str) -> Ran:
        """Runs one of PROGRAMS, no shell. Its absence is status 127, the end of our patience 124."""
        if command[0] not in PROGRAMS:
            raise ValueError(f"{command[0]} is none of the programs {sorted(PROGRAMS)}")
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                                  timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            return Ran(127, f"{command[0]} is not installed")
        except subprocess.TimeoutExpired:
            return Ran(124, f"{command[0]} did not end within {COMMAND_SECONDS:g} s")
        return Ran(done.returncode, done.stdout + done.stderr)
