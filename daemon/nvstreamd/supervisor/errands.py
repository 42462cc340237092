"""How does the daemon learn about model files without parsing them? By an engine that runs one errand and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.errors import DeadlinePassed, InvalidRequest, PermissionDenied
from nvstreamd.supervisor.commands import BlockDrive, Describe, Pack
from nvstreamd.supervisor.engine_uids import EngineUsers, Task
from nvstreamd.supervisor.known import ModelFacts
from nvstreamd.supervisor.opening import open_model, opened
from nvstreamd.supervisor.process import EngineProcess
from nvstreamd.supervisor.reports import Described, PackProgress, checked
from nvstreamd.supervisor.rights import Rights, open_as, open_as_uid
from nvstreamd.weights.packed.drive_files import Drives
from nvstreamd.weights.packed.files import MOST_PARTS, OpenFile, open_all, parts_of
from nvstreamd.weights.packed.store import SUFFIX

# An import takes the first namespace of a drive.
NSID = 1
DESCRIBE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PackOrder:
    """A model to import: its first file, its name, where the manifest goes, and directories or else serial numbers.

    `rights` are whose the source is opened with, None the daemon's own.
    """

    source: Path
    rights: Rights | None
    name: str
    home: Path
    directories: Sequence[Path]
    devices: Sequence[str]


async def describe(path: Path, drives: Drives, users: EngineUsers) -> ModelFacts:
    """The facts of a model, its needs among them. Raises NvstreamError naming file, field and remedy."""
    with ExitStack() as stack:
        files = await opened(lambda own: open_model(path, drives, own), stack)
        engine = EngineProcess(users, Task.DESCRIBE)
        await engine.start(Describe(files), files)
        try:
            # Looks take turns: one that takes for ever would be everybody's.
            async with asyncio.timeout(DESCRIBE_SECONDS):
                return checked(await engine.receive(), Described).facts
        except TimeoutError:
            engine.kill()
            raise DeadlinePassed(f"{path.name} was not understood within {DESCRIBE_SECONDS:g} s",
                                 "look at the drive that it is on") from None
        finally:
            await engine.stop()


async def pack(order: PackOrder, drives: Drives, users: EngineUsers) -> AsyncIterator[PackProgress | Described]:
    """Progress of an import, then its result. Raises NvstreamError; closing the iterator stops the import."""
    with ExitStack() as stack:
        files = await opened(lambda own: _open_source(order, users, own), stack)
        blocks = await opened(lambda own: _open_blocks(order.devices, drives, own), stack)
        if len(files) + len(blocks) > MOST_PARTS:
            raise InvalidRequest(f"{len(files)} files and {len(blocks)} drives are too many",
                                 f"at most {MOST_PARTS} together", field="devices")
        onto = [BlockDrive(serial, NSID, block.path) for serial, block in zip(order.devices, blocks, strict=True)]
        command = Pack(files, order.name, str(order.home), list(map(str, order.directories)), onto)
        engine = EngineProcess(users, Task.IMPORT)
        await engine.start(command, [*files, *blocks])
        try:
            while True:
                report = await engine.receive()
                if not isinstance(report, PackProgress):
                    yield checked(report, Described)
                    return
                yield report
        finally:
            await engine.stop()


def _open_source(order: PackOrder, users: EngineUsers, stack: ExitStack) -> list[OpenFile]:
    if order.source.suffix == SUFFIX:
        raise InvalidRequest("the source is a packed model already", "import a GGUF file", field="source")
    if order.rights is None:
        return open_all(parts_of(order.source), stack, open_as_uid)
    if users.are_root:
        # It would write wherever the caller wants.
        raise PermissionDenied("without `engine_user` root alone imports", "name an unprivileged user there")
    return open_as(order.rights, parts_of(order.source), stack)


def _open_blocks(serials: Sequence[str], drives: Drives, stack: ExitStack) -> list[OpenFile]:
    return [drives.open_block(serial, NSID, write=True, stack=stack) for serial in serials]
