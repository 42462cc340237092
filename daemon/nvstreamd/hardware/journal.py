"""What was about to be changed when the daemon died? Each claim has a file, which is on the disk before each change.

The first line has the claim with all its changes and what the machine was like; it is there whole or not at all. A line
follows before each change, and one after it. A power cut may tear the last line. That line is ignored: a change that is
made or undone again looks at the machine first.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvdma.pci.address import PciAddress
from nvstreamd.errors import JournalError
from nvstreamd.hardware.changes import Bind, Change, from_json, to_json
from nvstreamd.weights.packed.durable import sync_directory, write_whole

VERSION = 1
SUFFIX = ".claim"
UNSAFE = re.compile(r"[^A-Za-z0-9_-]")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Before:
    """The state that a function was in before it was claimed, and has to be in again."""

    driver: str
    driver_override: str
    power: str


@dataclass(slots=True)
class Record:
    """A claim on the disk. The first `begun` changes may have been made, the first `done` have been."""

    address: PciAddress
    serial: str
    boot_id: str
    before: Before
    changes: tuple[Change, ...]
    begun: int = 0
    done: int = 0
    path: Path = field(default_factory=Path)

    @property
    def complete(self) -> bool:
        """True when the claim was made in full."""
        return self.done == len(self.changes)

    @property
    def driver(self) -> str:
        """The driver that the function is given to; "" when it is to none."""
        return next((change.driver for change in self.changes if isinstance(change, Bind)), "")


class Journal:
    """The claims on the disk, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time changes drives. Raises JournalError when another one does."""
        with ExitStack() as stack:
            with _named(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JournalError(f"{self.directory}: another process claims or releases a drive",
                                   "try again") from error
            yield

    def create(self, record: Record) -> None:
        """Puts a claim on the disk, before its first change. Raises JournalError."""
        record.path = self.directory / f"{record.address}-{UNSAFE.sub('_', record.serial)}{SUFFIX}"
        if record.path.exists():
            raise JournalError(f"{record.path}: this drive is claimed already", "release it: `nvstreamd release`")
        header = {"version": VERSION, "address": str(record.address), "serial": record.serial,
                  "boot_id": record.boot_id, "driver": record.before.driver,
                  "driver_override": record.before.driver_override, "power": record.before.power,
                  "steps": [to_json(change) for change in record.changes]}
        with _named(record.path):
            write_whole(record.path, json.dumps(header).encode() + b"\n")

    def begin(self, record: Record, change: int) -> None:
        """Notes that a change is about to be applied."""
        self.append(record.path, {"begin": change})
        record.begun = max(record.begun, change + 1)

    def finish(self, record: Record, change: int) -> None:
        """Notes that a change was applied."""
        self.append(record.path, {"done": change})
        record.done = max(record.done, change + 1)

    def append(self, path: Path, line: dict[str, Any]) -> None:
        """One line, on the disk when this returns. Raises JournalError, and what it announces must not happen."""
        # A torn line before it must not swallow this one.
        content = b"\n" + json.dumps(line).encode() + b"\n"
        with _named(path), ExitStack() as stack:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)

    def remove(self, record: Record) -> None:
        """Forgets a claim whose changes were all taken back."""
        with _named(record.path):
            record.path.unlink()
            sync_directory(self.directory)

    def paths(self) -> list[Path]:
        """The file of every claim on the disk."""
        return sorted(self.directory.glob(f"*{SUFFIX}")) if self.directory.is_dir() else []

    def look(self) -> tuple[list[Record], list[JournalError]]:
        """Every claim on the disk that can be read, and why the others cannot: `recover` fails with those."""
        found, failures = [], []
        for path in self.paths():
            try:
                found.append(read(path))
            except JournalError as error:
                failures.append(error)
        return found, failures

    def records(self) -> list[Record]:
        """Every claim on the disk that can be read; the log has why the others cannot."""
        found, failures = self.look()
        for failure in failures:
            log.error("%s", failure)
        return found


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns an OSError into a JournalError that names the file."""
    try:
        yield
    except OSError as error:
        raise JournalError(f"{path}: the journal of claims cannot be kept: {error.strerror}",
                           "run this as root, and see that its file system has space and can be written") from error


def read(path: Path) -> Record:
    """A claim. Raises JournalError, which never loses the file."""
    with _named(path):
        lines = path.read_text(errors="replace").splitlines()
    try:
        header = json.loads(lines[0])
        if header["version"] != VERSION:
            raise ValueError(f"it is of version {header['version']}")
        before = Before(str(header["driver"]), str(header["driver_override"]), str(header["power"]))
        record = Record(PciAddress.parse(header["address"]), str(header["serial"]), str(header["boot_id"]), before,
                        tuple(from_json(change) for change in header["steps"]), path=path)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        hint = "look at it, bring the drive back by hand (driver_override, bind), then delete it"
        raise JournalError(f"{path}: this claim cannot be read: {error}", hint) from error
    for line in lines[1:]:
        _follow(record, line)
    return record


def _follow(record: Record, line: str) -> None:
    try:
        entry = json.loads(line)
        record.begun = max(record.begun, int(entry.get("begin", -1)) + 1)
        record.done = max(record.done, int(entry.get("done", -1)) + 1)
    except (ValueError, AttributeError, TypeError):
        return  # empty, or torn by a power cut
