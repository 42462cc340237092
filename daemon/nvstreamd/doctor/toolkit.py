"""Is there what an engine needs to compute on a card? It is looked for and never imported: CUDA would come with it.

NVRTC is in a package of NVIDIA's, or among the CUDA toolkit's libraries.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from nvstreamd.hardware.system import System

BINDINGS = "cuda-bindings"
# By the CUDA release that they are for.
CUPY = {13: "cupy-cuda13x", 12: "cupy-cuda12x"}
NVRTC = {13: "nvidia-cuda-nvrtc", 12: "nvidia-cuda-nvrtc-cu12"}
LIBRARY = re.compile(r"libnvrtc\.so\.(\d{2})\b")
# The environment of the Debian package, and dpkg's list of its files.
PACKAGED = "/usr/lib/nvstreamd/venv", "var/lib/dpkg/info/nvstreamd.list"
# Where the CUDA toolkit, Debian's packages and Fedora's put libraries.
LIBRARIES = ("usr/local/cuda/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib64")


@dataclass(frozen=True, slots=True)
class Toolkit:
    """The CUDA releases that packages are for, None without them; `cupy` is 0 where it does not say which.

    `nvrtc` are those whose compiler is there. `packaged`: this Python's environment is the Debian package's.
    """

    cupy: int | None = None
    bindings: int | None = None
    nvrtc: frozenset[int] = frozenset()
    packaged: bool = False


NOTHING = Toolkit()


def toolkit(system: System) -> Toolkit:
    """What this Python could import, and which libraries there are."""
    releases = (release for release, name in CUPY.items() if _version(name))
    cupy = next(releases, 0) if find_spec("cupy") else None
    bindings = _version(BINDINGS)
    home, files = PACKAGED
    packaged = sys.prefix == home and system.exists(files)
    return Toolkit(cupy, _major(bindings) if bindings else None, frozenset(_nvrtc(system)), packaged)


def _nvrtc(system: System) -> Iterator[int]:
    # From 13 on the package's name has no release in it, and its version has.
    yield from (_major(found) for found in map(_version, NVRTC.values()) if found)
    files = (LIBRARY.match(name) for place in LIBRARIES for name in system.names(place))
    yield from (int(file[1]) for file in files if file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _major(text: str) -> int:
    number = text.partition(".")[0]
    return int(number) if number.isdecimal() else 0
