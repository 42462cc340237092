"""How do the C++ kernels become a library? Hatchling's build hook; also a command: build_kernels.py.

Without a C++ compiler the package is built without them: the torch reference works, and `status` says which is in use.
"""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # as a command, outside a build
    BuildHookInterface = object  # type: ignore[assignment,misc]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "daemon/nvstreamd/kernels/cpu"
STRUCTS = SOURCES.parent / "cpu_structs.py"
LIBRARY = ROOT / "daemon/nvstreamd/kernels/_cpu.so"
COMPILERS = ("c++", "g++", "clang++")
# No contraction: a fused multiply-add is written where one is meant, so that all instruction sets round alike.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c",
          # GCC 12's own AVX-512 headers begin many results as undefined; only GCC knows the second of these.
          "-Wno-uninitialized", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized")
UNITS: dict[str, tuple[str, ...]] = {
    "library.cpp": (),
    "pool.cpp": (),
    # Vectors wider than the base instruction set are passed inside one file only.
    "isa_portable.cpp": ("-Wno-psabi",),
}
X86_UNITS = {
    "isa_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "isa_avx512.cpp": AVX512,
    "isa_avx512_vnni.cpp": (*AVX512, "-mavx512vnni"),
}


def units() -> dict[str, tuple[str, ...]]:
    """Source files and the flags of each, for this machine's architecture."""
    return UNITS | X86_UNITS if platform.machine() in ("x86_64", "AMD64") else UNITS


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first that is installed."""
    return next((found for name in (os.environ.get("CXX", ""), *COMPILERS) if name and (found := shutil.which(name))),
                None)


def build(target: Path, cxx: str) -> None:
    """Compiles and links `target`; replaced as a whole, so that no process ever sees half a library."""
    write_header()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        def compile_unit(unit: tuple[str, tuple[str, ...]]) -> Path:
            name, flags = unit
            made = Path(scratch) / f"{name}.o"
            subprocess.run([cxx, *FLAGS, *flags, "-c", str(SOURCES / name), "-o", str(made)], check=True)
            return made

        objects = list(pool.map(compile_unit, units().items()))
        partial = target.with_suffix(".partial")
        subprocess.run([cxx, "-shared", "-pthread", "-o", str(partial), *map(str, objects)], check=True)
        partial.replace(target)


def write_header() -> None:
    """Writes cpu/structs.h anew where it is not what cpu_structs.py says."""
    sys.path.insert(0, str(ROOT / "daemon"))  # the package is not installed yet
    try:
        text = runpy.run_path(str(STRUCTS))["header"]()
    finally:
        sys.path.pop(0)
    target = SOURCES / "structs.h"
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def digest() -> str:
    """What the library depends on."""
    found = hashlib.sha256()
    for path in sorted([*SOURCES.iterdir(), STRUCTS, Path(__file__)]):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


class KernelsHook(BuildHookInterface):  # type: ignore[misc,type-arg,unused-ignore]
    """Builds the library into the tree, from where both wheels and editable installs take it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if self.target_name != "wheel" or not make():
            return
        build_data["artifacts"].append(str(LIBRARY.relative_to(ROOT)))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def make() -> bool:
    """Builds, unless there is no compiler."""
    cxx = compiler()
    if cxx is None:
        LIBRARY.unlink(missing_ok=True)
        print("nvstreamd: no C++ compiler: the CPU kernels are left out (apt-get install g++)", file=sys.stderr)
        return False
    try:
        build(LIBRARY, cxx)
    except subprocess.CalledProcessError as error:
        LIBRARY.unlink(missing_ok=True)
        print(f"nvstreamd: {cxx} cannot build the CPU kernels, they are left out: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(0 if make() else 1)
