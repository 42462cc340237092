"""Which model files are in a tree of directories? Looked for with bounds; what has not changed is not read again.

No link to a directory is followed below those that the configuration names: it would be the word of whoever made it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvstreamd.weights.packed.attempts import JOURNAL_NAME
from nvstreamd.weights.packed.files import SPLIT_NAME
from nvstreamd.weights.packed.follow import Led, at, open_path
from nvstreamd.weights.packed.store import MANIFEST_NAME, SUFFIX

# Of one configured directory: entries that are looked at, and directories below each other.
MOST_ENTRIES = 20_000
DEEPEST = 6
# A directory that changed so lately may change again without a later time.
SETTLED_NS = 2_000_000_000
ENDING = ".gguf"
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


@dataclass(slots=True)
class Found:
    """Files and packed directories, sorted; imports that have not finished; what was passed over, and why."""

    models: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Entries:
    """A directory's entries that count, as of `stamp`: files of models, names of packed ones and of directories."""

    stamp: tuple[int, int, int]
    settled: bool
    files: tuple[Path, ...]
    packed: tuple[str, ...]
    directories: tuple[str, ...]
    count: int
    notes: tuple[str, ...]


class Scanner:
    """Looks again and again at the same directories; for one thread at a time."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = directories
        self._known: dict[Path, _Entries] = {}

    def scan(self) -> Found:
        """All that there is now. A directory that cannot be read is said, and offers nothing."""
        found, known = Found(), self._known
        self._known = {}
        for directory in dict.fromkeys(self.directories):
            try:
                fd = open_path(directory, DIRECTORY)
            except FileNotFoundError:
                continue
            except (OSError, Led) as error:
                found.passed_over.append(f"{directory} offers no models: {_why(error)}")
                continue
            try:
                left = self._descend(fd, directory, DEEPEST, MOST_ENTRIES, known, found)
            finally:
                os.close(fd)
            if left < 0:
                found.passed_over.append(f"{directory} has more than {MOST_ENTRIES} entries: not all are looked at")
        return found

    def _descend(self, fd: int, path: Path, deeper: int, left: int, known: dict[Path, _Entries], found: Found) -> int:
        """Adds what is in the directory `fd` and below; returns how many entries may still be looked at."""
        if path in self._known:
            return left
        self._known[path] = entries = _entries(fd, path, left, known.get(path))
        left -= entries.count
        found.passed_over += entries.notes
        found.models += entries.files
        for name in entries.packed:
            _add_packed(fd, path / name, found)
        if entries.directories and not deeper:
            found.passed_over.append(f"{path}: directories in it are too deep to be looked at")
        for name in entries.directories if deeper else ():
            if left <= 0:
                return -1
            try:
                below = at(fd, name, DIRECTORY)
            except OSError as error:
                found.passed_over.append(f"{path / name} is not looked at: {_why(error)}")
                continue
            try:
                left = self._descend(below, path / name, deeper - 1, left, known, found)
            finally:
                os.close(below)
        return left


def _entries(fd: int, path: Path, most: int, known: _Entries | None) -> _Entries:
    facts = os.fstat(fd)
    stamp = (facts.st_dev, facts.st_ino, facts.st_mtime_ns)
    if known is not None and known.settled and known.stamp == stamp:
        return known
    # What is written after this has a later time than any that is settled.
    settled = time.time_ns() - facts.st_mtime_ns > SETTLED_NS
    files, packed, directories, count = [], [], [], 0
    with os.scandir(fd) as entries:
        for entry in entries:
            count += 1
            if count > most:
                settled = False
                break
            if entry.name.startswith("."):
                continue
            is_directory = entry.is_dir(follow_symlinks=False)
            if entry.name.endswith(SUFFIX) and (is_directory or entry.is_symlink()):
                packed.append(entry.name)
            elif is_directory:
                directories.append(entry.name)
            elif entry.name.lower().endswith(ENDING):
                files.append(entry.name)
    first, lacking = _first_parts(sorted(files))
    notes = [f"{path / name} is not offered: the first part is not there" for name in lacking]
    return _Entries(stamp, settled, tuple(path / name for name in first), tuple(sorted(packed)),
                    tuple(sorted(directories)), count, tuple(notes))


def _first_parts(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Whole files and first parts of split ones; of each split one without its first part, one name."""
    first: list[str] = []
    others: dict[tuple[str, str], str] = {}
    for name in names:
        split = SPLIT_NAME.match(name)
        if split is None or int(split["part"]) == 1:
            first.append(name)
        else:
            others.setdefault((split["stem"], split["parts"]), name)
    there = {(split["stem"], split["parts"]) for split in map(SPLIT_NAME.match, first) if split}
    return first, [name for key, name in others.items() if key not in there]


def _add_packed(fd: int, path: Path, found: Found) -> None:
    """A link is offered as it is: whoever opens it looks whose it is."""
    try:
        inside = at(fd, path.name, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        found.models.append(path)
        return
    try:
        if _has(inside, MANIFEST_NAME):
            found.models.append(path)
        elif _has(inside, JOURNAL_NAME):
            found.unfinished.append(path)
        # Else it holds parts of a model whose manifest is elsewhere.
    finally:
        os.close(inside)


def _has(fd: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _why(error: OSError | Led) -> str:
    return f"a link to it is uid {error.owner}'s" if isinstance(error, Led) else str(error.strerror)
