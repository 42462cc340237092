"""How does an engine read from drives that the daemon claimed for it? Through the descriptors that it was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nvdma.arena import Arena
from nvdma.backend import Backend
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.errors import DmaError
from nvdma.nvme.drive import Drive
from nvdma.pci.access import access_of
from nvdma.pci.grants import BY_IOMMUFD, BY_MODULE, descriptor_count
from nvdma.select import Factory, Sample
from nvdma.types import NVME_HOST, UNTRANSLATED, Source
from nvstreamd.engine.commands import ClaimedDrive
from nvstreamd.engine.describe import ModelFile
from nvstreamd.errors import ProtocolError, StorageError
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import DriveHome

DEPTH = 32
# Notes for status, on drives that are not opened in the usual way.
NOTES = {BY_MODULE: UNTRANSLATED, BY_IOMMUFD: "through iommufd: the kernel has no VFIO containers"}


@dataclass(frozen=True, slots=True)
class ClaimedFile(OpenFile):
    """A part of a model on a drive that is ours. Nobody else can change it; the kernel has no descriptor of it."""

    drive: Drive
    nsid: int

    def check_unchanged(self) -> None:
        """Does nothing: when the drive was opened, its bytes were compared with those of the import."""

    def read(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from byte `offset` of the drive on, read beside the mover's commands.

        It works only while the backend is open, and the mover's thread goes on meanwhile. Raises StorageError.
        """
        try:
            namespace = self.drive.controller.namespace(self.nsid)
            return self.drive.side.read(namespace, offset, min(count, max(0, self.size - offset)))
        except DmaError as error:
            raise StorageError(f"{self.path}: reading at offset {offset} failed: {error.what}", error.hint) from error


class ClaimedDrives:
    """The drives that came with a load command, by their serial numbers; none is started yet.

    `notes` are for status. Raises ProtocolError when descriptors and drives do not fit, StorageError for a drive that
    cannot be had.
    """

    def __init__(self, given: Sequence[ClaimedDrive], fds: Sequence[int]) -> None:
        left = list(fds)
        try:
            self.drives = {each.serial: _drive(each, left) for each in given}
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        except DmaError as error:
            raise StorageError(error.what, error.hint) from error
        if left:
            raise ProtocolError(f"{len(left)} descriptors came that are of none of the {len(given)} drives")
        self.notes = tuple(f"drive {each.serial}: {NOTES[each.way]}" for each in given if each.way in NOTES)

    def __bool__(self) -> bool:
        return bool(self.drives)

    def attach(self, model: ModelFile) -> ModelFile:
        """The model with its parts read from the drives. Raises ProtocolError when a part is on none of them."""
        if not self:
            return model
        data = [file if home is None else self._file(file, home)
                for file, home in zip(model.data, model.manifest.homes, strict=True)]
        return replace(model, data=tuple(data))

    def factories(self, model: ModelFile) -> Mapping[str, Factory]:
        """The backend that streams from them."""
        numbers = {serial: number for number, serial in enumerate(self.drives)}
        # Offsets of extents and samples count from the drive's beginning.
        places = [None if home is None else OnDrive(numbers[home.serial], home.nsid, 0)
                  for home in model.manifest.homes]

        def make(sources: Sequence[Source], arena: Arena, _: int) -> Backend:
            return NvmeBackend(NVME_HOST, list(self.drives.values()), places, sources, arena)

        return {NVME_HOST: make}

    def _file(self, file: OpenFile, home: DriveHome) -> ClaimedFile:
        drive = self.drives.get(home.serial)
        if drive is None:
            raise ProtocolError(f"drive {home.serial} holds a part of the model and did not come with it")
        return ClaimedFile(file.fd, file.path, home.offset + home.size, 0, 0, drive, home.nsid)


def samples(model: ModelFile) -> list[Sample]:
    """The samples that must be found on the drives: digests that the import took through the kernel."""
    return [Sample(number, probe.offset, probe.length, probe.length, bytes.fromhex(probe.digest))
            for number, home in enumerate(model.manifest.homes) if home is not None for probe in home.probes]


def _drive(given: ClaimedDrive, fds: list[int]) -> Drive:
    """Takes the first of `fds`."""
    count = descriptor_count(given.way)
    own, fds[:] = fds[:count], fds[count:]
    return Drive(access_of(given.way, own), f"{given.address} ({given.serial})", DEPTH)
