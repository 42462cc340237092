"""Which models lie on a drive, and how does that change so that a power cut leaves it as it was, or as it will be?

| byte | what |
|---|---|
| 0 | superblock, written by even generations |
| 4096 | superblock, written by odd ones |
| 1 MiB, 2 MiB | directory of even generations, of odd ones: up to 1 MiB each |
| 4 MiB | models, each from a multiple of 1 MiB on |

A change writes the directory that is not in use, waits until it is on the drive, then writes the superblock that is not
in use. The newest generation that is whole counts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import xxhash

from nvstreamd.errors import BadVolume, StorageFull
from nvstreamd.weights.packed.durable import write
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import align_up
from nvstreamd.weights.packed.superblock import (
    AREA,
    BLOCK,
    DATA_BEGIN,
    MAGIC,
    MOST_MODELS,
    Directory,
    Entry,
    Stretch,
    Superblock,
    parse_directory,
    parse_superblock,
    plain,
)

MODEL_ALIGNMENT = 1 << 20
AREAS = (1 << 20, 2 << 20)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Bytes that a model needs on a drive: its part, and copies of header and manifest. Multiples of 4096."""

    part: int
    header: int
    manifest: int

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.part + self.header + self.manifest


class Volume:
    """A drive's superblock and directory as they are there now. `read_volume` and `format_volume` make it."""

    def __init__(self, file: OpenFile, superblock: Superblock, models: Sequence[Entry]) -> None:
        self.file = file
        self.superblock = superblock
        self.models = tuple(models)

    @property
    def uuid(self) -> str:
        """The volume's, 32 hexadecimal digits."""
        return self.superblock.uuid

    @property
    def free(self) -> int:
        """Bytes that no model takes, in however many pieces."""
        taken = sum(stretch.length for entry in self.models for stretch in entry.stretches)
        return max(0, self.superblock.capacity - DATA_BEGIN - taken)

    def find(self, model: str) -> Entry | None:
        """The entry of an import, None when it has nothing here."""
        return next((entry for entry in self.models if entry.model == model), None)

    def place(self, name: str, model: str, lengths: Lengths) -> Entry:
        """Where a model would lie; nothing is written. Raises StorageFull: how much is free, what takes the rest.

        An import that has its place keeps it. What earlier attempts at the name left unfinished is in nobody's way.
        """
        found = self.find(model)
        if found is not None and tuple(s.length for s in found.stretches) == (lengths.part, lengths.header,
                                                                              lengths.manifest):
            return found
        kept = self._beside(name, model)
        begin = self._first_fit(kept, lengths.total)
        if begin is None or len(kept) >= MOST_MODELS:
            raise self._full(name, kept, lengths)
        header = begin + lengths.part
        return Entry(name=name, model=model, unfinished=True, part=Stretch(offset=begin, length=lengths.part),
                     header=Stretch(offset=header, length=lengths.header),
                     manifest=Stretch(offset=header + lengths.header, length=lengths.manifest))

    def reserve(self, name: str, model: str, lengths: Lengths) -> Entry:
        """The model's place, on the drive when this returns. Raises StorageFull and OSError."""
        entry = self.place(name, model, lengths)
        if entry not in self.models:
            self._commit((*self._beside(name, model), entry))
        return entry

    def finish(self, model: str) -> None:
        """Says that a model is whole; it replaces every other of its name. Raises OSError."""
        found = self.find(model)
        if found is None:
            raise BadVolume(f"{self.file.path}: import {model} has lost its place", "run the same import again")
        others = tuple(entry for entry in self.models if entry.name != found.name)
        if found.unfinished or len(others) + 1 != len(self.models):
            self._commit((*others, found.model_copy(update={"unfinished": False})))

    def remove(self, name: str) -> None:
        """Gives back what every model of that name takes, finished or not. Raises OSError."""
        kept = tuple(entry for entry in self.models if entry.name != name)
        if len(kept) != len(self.models):
            self._commit(kept)

    def _beside(self, name: str, model: str) -> tuple[Entry, ...]:
        """Everything that an import has to leave alone."""
        return tuple(entry for entry in self.models
                     if entry.model != model and not (entry.unfinished and entry.name == name))

    def _first_fit(self, kept: Sequence[Entry], length: int) -> int | None:
        begin = DATA_BEGIN
        for stretch in sorted((s for entry in kept for s in entry.stretches if s.length), key=lambda s: s.offset):
            if begin + length <= stretch.offset:
                return begin
            begin = -(-stretch.end // MODEL_ALIGNMENT) * MODEL_ALIGNMENT
        return begin if begin + length <= self.superblock.capacity else None

    def _full(self, name: str, kept: Sequence[Entry], lengths: Lengths) -> StorageFull:
        there = ", ".join(f"{entry.name}{' (unfinished)' if entry.unfinished else ''}" for entry in kept[:20])
        return StorageFull(
            f"{self.file.path}: {lengths.total} bytes in one piece are needed for {name}, {self.free} are free; on it: "
            f"{there or 'no model'}", "name another drive, or more of them, then run the same import again")

    def _commit(self, models: tuple[Entry, ...]) -> None:
        raw = Directory(models=models).model_dump_json().encode()
        if len(raw) > AREA:
            raise StorageFull(f"{self.file.path}: its directory of {len(models)} models is full", "use another drive")
        generation = self.superblock.generation + 1
        offset = AREAS[generation % 2]
        superblock = replace(self.superblock, generation=generation, directory_offset=offset,
                             directory_length=len(raw), directory_checksum=xxhash.xxh3_64_intdigest(raw))
        # In whole blocks: nothing has to be read first.
        write(self.file.fd, memoryview(raw.ljust(align_up(len(raw)), b"\0")), offset)
        os.fdatasync(self.file.fd)
        write(self.file.fd, memoryview(superblock.packed()), generation % 2 * BLOCK)
        os.fdatasync(self.file.fd)
        self.superblock, self.models = superblock, models


def read_volume(file: OpenFile, serial: str) -> Volume | None:
    """The volume on a drive; None on one that never carried any.

    Raises BadVolume when it is damaged, of another version or another drive's, StorageError when it cannot be read.
    """
    blocks = [file.read(BLOCK, number * BLOCK) for number in range(2)]
    parsed = [parse_superblock(file.path, block, number) for number, block in enumerate(blocks)]
    problem = "its superblocks are damaged"
    for superblock in sorted(filter(None, parsed), key=lambda each: each.generation, reverse=True):
        _check_drive(file, superblock, serial)
        try:
            return Volume(file, superblock, _models(file, superblock))
        except ValueError as error:
            problem = str(error)
    # The first superblock ever goes to 4096: where a power cut tore that one, no model was there yet.
    if any(parsed) or blocks[0].startswith(MAGIC):
        raise BadVolume(f"{file.path}: {problem}",
                        "if no model on it is needed, overwrite its first 8 KiB with zeros, then import again")
    return None


def format_volume(file: OpenFile, serial: str) -> Volume:
    """A volume without models on a drive that carries nothing: the caller has seen to that. Raises OSError.

    Raises StorageFull for a drive that is too small for any.
    """
    if file.size < DATA_BEGIN + MODEL_ALIGNMENT:
        raise StorageFull(f"{file.path}: {file.size} bytes are too few for any model", "use another drive")
    volume = Volume(file, Superblock(0, uuid4().hex, serial, file.size), ())
    volume._commit(())
    return volume


def _check_drive(file: OpenFile, superblock: Superblock, serial: str) -> None:
    other = "use the drive itself; to use this one, overwrite its first 8 KiB with zeros and import again"
    if superblock.serial != plain(serial):
        raise BadVolume(f"{file.path}: carries a copy of drive {superblock.serial}, its own serial is {serial}", other)
    if superblock.capacity > file.size:
        raise BadVolume(f"{file.path}: has {file.size} bytes, its superblock says {superblock.capacity}", other)


def _models(file: OpenFile, superblock: Superblock) -> tuple[Entry, ...]:
    """Raises ValueError for a directory that is not whole."""
    offset, length = superblock.directory_offset, superblock.directory_length
    if offset != AREAS[superblock.generation % 2] or not 0 < length <= AREA:
        raise ValueError(f"its directory of {length} bytes is at byte {offset}")
    return parse_directory(file.read(length, offset), superblock)
