"""Where does an engine put a model that it packs? Into directories, or onto drives whose descriptors it was given."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nvstreamd.engine.commands import Device, Pack
from nvstreamd.errors import ProtocolError
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.targets import DriveTarget, Target, in_directories


class GivenDrives:
    """The drives whose descriptors came with a command; an engine can open no others."""

    def __init__(self, devices: Sequence[Device], blocks: Sequence[OpenFile]) -> None:
        self._blocks = {(device.serial, device.nsid): block for device, block in zip(devices, blocks, strict=True)}

    def open_block(self, serial: str, nsid: int, *, write: bool, stack: ExitStack) -> OpenFile:
        """The drive's descriptor, which whoever gave it closes. Raises ProtocolError when none came."""
        block = self._blocks.get((serial, nsid))
        if block is None:
            raise ProtocolError(f"the descriptor of drive {serial[:40]!r} did not come")
        return block


def targets_of(command: Pack, blocks: Sequence[OpenFile]) -> list[Target]:
    """The target of each part of the model. Raises ProtocolError when both kinds are named."""
    if command.devices and command.directories:
        raise ProtocolError("directories and devices exclude each other")
    if not command.devices:
        return in_directories(command.name, [Path(directory) for directory in command.directories])
    return [DriveTarget(command.name, device.serial, device.nsid, block)
            for device, block in zip(command.devices, blocks, strict=True)]
