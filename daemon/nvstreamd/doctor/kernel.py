"""What was the running kernel built with, and which modules are there for it?

Sources: Documentation/kbuild/kbuild.rst (modules.builtin), depmod(8) (modules.dep), proc(5) (config.gz, cmdline).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from nvstreamd.hardware.system import System

# Those that anything here asks for, by the option of the kernel that builds them; without one DKMS does.
MODULES: Mapping[str, str] = MappingProxyType({
    "vfio_pci": "CONFIG_VFIO_PCI", "vfio_iommu_type1": "CONFIG_VFIO_IOMMU_TYPE1", "nvstream": "", "nvidia_fs": "",
})
# Ten times what the largest configurations have.
CONFIG_LIMIT = 4 << 20
GZIP = 16 + zlib.MAX_WBITS
OPTION = re.compile(r"^(CONFIG_\w+)=(y|m)$", re.MULTILINE)
MODULE_FILE = re.compile(r"([^/\s]+)\.ko(?:\.\w+)?$")
# What uname(2) may say and a path may hold.
RELEASE = re.compile(r"[\w.+~-]+")
VERSION = re.compile(r"(\d+)\.(\d+)")


class Presence(StrEnum):
    """The presence of a module."""

    LOADED = "loaded"
    BUILT_IN = "built in"
    INSTALLED = "installed, not loaded"
    ABSENT = "not installed"
    UNKNOWN = "not known to be installed"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel that runs. `options` are those set to y or m, None when no copy of its configuration can be read.

    `dkms`: versions of the module nvstream whose source DKMS has.
    """

    release: str
    options: Mapping[str, str] | None
    modules: Mapping[str, Presence]
    command_line: tuple[str, ...]
    dkms: tuple[str, ...]

    @property
    def version(self) -> tuple[int, int] | None:
        """Major and minor number, None when the release does not begin with them."""
        found = VERSION.match(self.release)
        return (int(found[1]), int(found[2])) if found else None

    def is_older(self, major: int, minor: int) -> bool:
        """True when it certainly is older than a version."""
        return self.version is not None and self.version < (major, minor)


def kernel(system: System, release: str) -> Kernel:
    """Reads what there is of the running kernel; nothing is loaded."""
    release = release if RELEASE.fullmatch(release) else ""
    options = _options(system, release)
    return Kernel(release, options, _modules(system, release, options),
                  tuple((system.read("proc/cmdline") or "").split()),
                  tuple(name for name in system.names("var/lib/dkms/nvstream") if name[0].isdigit()))


def _options(system: System, release: str) -> Mapping[str, str] | None:
    """From the first of the usual places that can be read."""
    texts = (_unpacked(system.read_bytes("proc/config.gz")), system.read(f"boot/config-{release}"),
             system.read(f"lib/modules/{release}/config"), system.read(f"lib/modules/{release}/build/.config"))
    text = next((each for each in texts if each), None)
    return None if text is None else MappingProxyType({found[1]: found[2] for found in OPTION.finditer(text)})


def _unpacked(data: bytes | None) -> str | None:
    try:
        return zlib.decompressobj(GZIP).decompress(data, CONFIG_LIMIT).decode(errors="replace") if data else None
    except zlib.error:
        return None


def _modules(system: System, release: str, options: Mapping[str, str] | None) -> Mapping[str, Presence]:
    home = f"lib/modules/{release}"
    listed = [system.read(f"{home}/{name}") for name in ("modules.dep", "modules.builtin")]
    is_known = listed[0] is not None
    installed, built_in = (frozenset(_names(text or "")) for text in listed)

    def presence(name: str, option: str) -> Presence:
        if name in built_in or (options or {}).get(option) == "y":
            return Presence.BUILT_IN
        if system.exists(f"sys/module/{name}"):
            return Presence.LOADED
        if name in installed:
            return Presence.INSTALLED
        is_unbuilt = bool(option) and options is not None and option not in options
        return Presence.ABSENT if is_known or is_unbuilt else Presence.UNKNOWN

    return MappingProxyType({name: presence(name, option) for name, option in MODULES.items()})


def _names(text: str) -> Iterator[str]:
    """The modules whose files begin the lines, as the kernel writes them: with underscores."""
    for line in text.splitlines():
        found = MODULE_FILE.search(line.partition(":")[0])
        if found:
            yield found[1].replace("-", "_")
