"""By which ways can a model's bytes reach its engine, and which of them comes next when one fails?

The best first. A model in files has one. One on drives has three: drives of our own, the kernel's block devices, the
files that it was imported from. A way that failed is not tried again before the model is loaded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvdma.types import NVME_HOST
from nvstreamd.errors import InvalidRequest, ModelChanged
from nvstreamd.hardware.held import HeldDrive
from nvstreamd.hardware.holder import Holder
from nvstreamd.supervisor.opening import open_model
from nvstreamd.supervisor.rights import open_as_uid
from nvstreamd.weights.drive_files import Drives
from nvstreamd.weights.files import Elsewhere, OpenFile, open_all
from nvstreamd.weights.manifest import DriveHome
from nvstreamd.weights.store import SUFFIX, files_of, sources_of


@dataclass(frozen=True, slots=True)
class Hardware:
    """What of the machine a model may use: `blocks` opens the kernel's block devices, `holder` takes drives from it."""

    blocks: Drives
    holder: Holder


@dataclass(frozen=True, slots=True)
class Opening:
    """A model's files, in the order of its manifest, and drives that are ours: parts on those have no descriptor."""

    files: Sequence[OpenFile]
    drives: Sequence[HeldDrive] = ()


class Way(Protocol):
    """One way."""

    @property
    def name(self) -> str:
        """As messages call it."""

    @property
    def backends(self) -> tuple[str, ...]:
        """Those that can go it, in order of preference."""

    @property
    def needs_drives(self) -> bool:
        """Whether it needs the drives that the model is on."""

    def open(self, stack: ExitStack) -> Opening:
        """Opens what the engine needs; `stack` gives it back. Takes a while. Raises NvstreamError."""


@dataclass(frozen=True, slots=True)
class OwnDrives:
    """The drives are taken from the kernel, and the engine gets their queues."""

    path: Path
    holder: Holder
    name: str = NVME_HOST
    backends: tuple[str, ...] = (NVME_HOST,)
    needs_drives: bool = True

    def open(self, stack: ExitStack) -> Opening:
        """See Way."""
        wanted = files_of(self.path)
        files = [_unopened(each) if isinstance(each, DriveHome) else open_all([each], stack, open_as_uid)[0]
                 for each in wanted]
        return Opening(files, self.holder.hold(_serials(wanted), stack))


@dataclass(frozen=True, slots=True)
class Kernel:
    """Files, and drives as block devices: the kernel reads them, and keeps them while it does."""

    path: Path
    hardware: Hardware
    backends: tuple[str, ...]
    needs_drives: bool
    name: str = "the kernel's driver"

    def open(self, stack: ExitStack) -> Opening:
        """See Way."""
        if self.path.suffix == SUFFIX:
            self.hardware.holder.share(_serials(files_of(self.path)), stack)
        return Opening(open_model(self.path, self.hardware.blocks, stack))


@dataclass(frozen=True, slots=True)
class Origin:
    """The files that a model was imported from, if they are what they were."""

    path: Path
    backends: tuple[str, ...]
    name: str = "the files that it was imported from"
    needs_drives: bool = False

    def open(self, stack: ExitStack) -> Opening:
        """See Way. Raises ModelChanged when one of them is another by now."""
        paths, sources = sources_of(self.path)
        files = open_all(paths, stack, open_as_uid)
        for file, source in zip(files, sources, strict=True):
            same = (file.size, file.inode) == (source.size, source.inode)
            untouched = file.mtime_ns == source.mtime_ns
            if not same or not (untouched or (source.sample and file.sample == source.sample)):
                raise ModelChanged(f"{file.path} is not the file any more that the model was imported from",
                                   "import the model again")
        return Opening(files)


def ways_to(path: Path, backends: Sequence[str], hardware: Hardware) -> list[Way]:
    """The ways that `backends` allow, at least one. Raises NotFound, BadModelFile, or InvalidRequest when none is."""
    through_kernel = tuple(name for name in backends if name != NVME_HOST)
    on_drives = path.suffix == SUFFIX and any(isinstance(each, DriveHome) for each in files_of(path))
    ways: list[Way] = []
    if on_drives and NVME_HOST in backends:
        ways.append(OwnDrives(path, hardware.holder))
    if through_kernel:
        ways.append(Kernel(path, hardware, through_kernel, on_drives))
    if through_kernel and on_drives:
        ways.append(Origin(path, through_kernel))
    if not ways:
        raise InvalidRequest(f"{path} is not on a drive: {NVME_HOST} cannot read it",
                             "import it with --device, or choose another backend", field="backend")
    return ways


def _serials(parts: Sequence[Path | Elsewhere | DriveHome]) -> list[str]:
    """The drives of a model, each once."""
    return list(dict.fromkeys(each.serial for each in parts if isinstance(each, DriveHome)))


def _unopened(home: DriveHome) -> OpenFile:
    return OpenFile(-1, f"drive {home.serial}", home.offset + home.size, 0, 0)
