"""By which routes can a model's bytes reach its engine, and which of them comes next when one fails?

Routes are in order, the best first. A model in files has one route. A model on drives has three: our own queues to the
drives, the kernel's block devices, and the files that the model was imported from. A route that failed is not tried
again until the model is loaded anew.
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
from nvstreamd.weights.packed.drive_files import Drives
from nvstreamd.weights.packed.files import Elsewhere, OpenFile, open_all
from nvstreamd.weights.packed.manifest import DriveHome
from nvstreamd.weights.packed.store import SUFFIX, files_of, sources_of


@dataclass(frozen=True, slots=True)
class Hardware:
    """The parts of the machine that models use: `blocks` opens block devices, `holder` takes drives from the kernel."""

    blocks: Drives
    holder: Holder


@dataclass(frozen=True, slots=True)
class OpenRoute:
    """A route that is open: the model's files, in the order of its manifest, and the drives that the daemon took.

    A part of the model on such a drive has no descriptor.
    """

    files: Sequence[OpenFile]
    drives: Sequence[HeldDrive] = ()


class Route(Protocol):
    """One route by which a model's bytes reach its engine."""

    @property
    def name(self) -> str:
        """As messages call it."""

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that can read on this route, in order of preference."""

    @property
    def needs_drives(self) -> bool:
        """True when it needs the drives that the model is on."""

    def open(self, stack: ExitStack) -> OpenRoute:
        """Opens what the engine needs, which takes a while; `stack` gives it back. Raises NvstreamError."""


@dataclass(frozen=True, slots=True)
class OwnDrives:
    """The drives are taken from the kernel, and the engine gets their queues."""

    path: Path
    holder: Holder
    name: str = NVME_HOST
    backends: tuple[str, ...] = (NVME_HOST,)
    needs_drives: bool = True

    def open(self, stack: ExitStack) -> OpenRoute:
        """Claims the drives for this model and opens the other files; `stack` gives all back. Raises NvstreamError."""
        wanted = files_of(self.path)
        files = [_unopened(each) if isinstance(each, DriveHome) else open_all([each], stack, open_as_uid)[0]
                 for each in wanted]
        return OpenRoute(files, self.holder.hold(_serials(wanted), stack))


@dataclass(frozen=True, slots=True)
class ThroughKernel:
    """The kernel reads the model: files as files, drives as block devices. It keeps the drives while it does."""

    path: Path
    hardware: Hardware
    backends: tuple[str, ...]
    needs_drives: bool
    name: str = "the kernel's driver"

    def open(self, stack: ExitStack) -> OpenRoute:
        """Opens files and block devices, which nobody may claim until `stack` closes them. Raises NvstreamError."""
        if self.path.suffix == SUFFIX:
            self.hardware.holder.share(_serials(files_of(self.path)), stack)
        return OpenRoute(open_model(self.path, self.hardware.blocks, stack))


@dataclass(frozen=True, slots=True)
class Origin:
    """The files that a model was imported from, if they have not changed since."""

    path: Path
    backends: tuple[str, ...]
    name: str = "the files that it was imported from"
    needs_drives: bool = False

    def open(self, stack: ExitStack) -> OpenRoute:
        """Opens the imported files; `stack` closes them. Raises ModelChanged when one of them is another by now."""
        paths, sources = sources_of(self.path)
        files = open_all(paths, stack, open_as_uid)
        for file, source in zip(files, sources, strict=True):
            same = (file.size, file.inode) == (source.size, source.inode)
            untouched = file.mtime_ns == source.mtime_ns
            if not same or not (untouched or (source.sample and file.sample == source.sample)):
                raise ModelChanged(f"{file.path} is not the file any more that the model was imported from",
                                   "import the model again")
        return OpenRoute(files)


def routes_to(path: Path, backends: Sequence[str], hardware: Hardware) -> list[Route]:
    """The routes that `backends` allow, at least one. Raises NotFound, BadModelFile, and InvalidRequest without any."""
    through_kernel = tuple(name for name in backends if name != NVME_HOST)
    on_drives = path.suffix == SUFFIX and any(isinstance(each, DriveHome) for each in files_of(path))
    routes: list[Route] = []
    if on_drives and NVME_HOST in backends:
        routes.append(OwnDrives(path, hardware.holder))
    if through_kernel:
        routes.append(ThroughKernel(path, hardware, through_kernel, on_drives))
    if through_kernel and on_drives:
        routes.append(Origin(path, through_kernel))
    if not routes:
        raise InvalidRequest(f"{path} is not on a drive: {NVME_HOST} cannot read it",
                             "import it with --device, or choose another backend", field="backend")
    return routes


def _serials(parts: Sequence[Path | Elsewhere | DriveHome]) -> list[str]:
    """The drives of a model, each once."""
    return list(dict.fromkeys(each.serial for each in parts if isinstance(each, DriveHome)))


def _unopened(home: DriveHome) -> OpenFile:
    return OpenFile(-1, f"drive {home.serial}", home.offset + home.size, 0, 0)
