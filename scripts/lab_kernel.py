"""Where does a kernel with iommufd come from, which no Debian kernel has? Debian's source, built for guests alone.

apt fetches the source package (153 MB) and checks it against the archive's signed lists; tests/vm/lab-kernel.config
says what is built: one image without modules, build/lab/iommufd/bzImage. A quarter of an hour on 2 cores at the lowest
priority and 3 GB of scratch space, once; what is there already is not built again. Nothing is installed and no root is
needed. Standard library only. Usage: python3 scripts/lab_kernel.py
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build/lab/iommufd"
IMAGE = HOME / "bzImage"
CONFIG = ROOT / "tests/vm/lab-kernel.config"
SOURCE = "linux-source-6.12"
JOBS = min(2, len(os.sched_getaffinity(0)))
PROGRAMS = ("apt-get", "dpkg-deb", "make", "gcc", "flex", "bison", "bc", "xz")
HEADER = Path("/usr/include/libelf.h")


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"lab-kernel: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, folder: Path) -> None:
    """Runs a command at the lowest priority; the end of its output only when it fails."""
    done = subprocess.run(["nice", "-n", "19", *map(str, command)], cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if done.returncode:
        sys.exit(f"{done.stdout[-8000:]}\nlab-kernel: failed ({done.returncode}): {' '.join(map(str, command))}")


def check_tools() -> None:
    """Ends with what to install when something is missing."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    missing += [] if HEADER.exists() else [str(HEADER)]
    if missing:
        sys.exit(f"lab-kernel: missing {', '.join(missing)}: on Debian "
                 "`apt-get install make gcc flex bison bc xz-utils libelf-dev`, as root, then try again")


def stamp() -> Path:
    """A file that is there when the image was built of these options."""
    digest = hashlib.sha256(SOURCE.encode() + CONFIG.read_bytes()).hexdigest()[:16]
    return HOME / f"ready-{digest}"


def unpack(scratch: Path) -> Path:
    """The kernel's source tree, the newest of its series that apt knows."""
    say(f"fetching {SOURCE}, 153 MB")
    run("apt-get", "download", "-qq", SOURCE, folder=scratch)
    (package,) = scratch.glob("*.deb")
    say(f"unpacking {package.name}")
    run("bash", "-c", f"set -o pipefail; dpkg-deb --fsys-tarfile '{package}' | tar -xO ./usr/src/{SOURCE}.tar.xz | "
                      "tar -xJ", folder=scratch)
    return scratch / SOURCE


def configure(tree: Path) -> None:
    """Ends when the kernel drops one of our options without a word, as it does when another is missing for it."""
    run("make", "-s", f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig", folder=tree)
    asked, taken = (path.read_text().splitlines() for path in (CONFIG, tree / ".config"))
    dropped = [line for line in asked if line.startswith("CONFIG_") and line not in taken]
    dropped += [line for line in asked if line.startswith("# CONFIG_") and f"{line.split()[1]}=y" in taken]
    if dropped:
        sys.exit(f"lab-kernel: {SOURCE} does not take {', '.join(dropped)}")


def main() -> None:
    """Builds what is missing, nothing when all is there."""
    if stamp().exists():
        return
    check_tools()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=HOME) as scratch:
        tree = unpack(Path(scratch))
        configure(tree)
        say("building, a quarter of an hour or more")
        run("make", "-s", f"-j{JOBS}", "bzImage", folder=tree)
        shutil.copy(tree / "arch/x86/boot/bzImage", IMAGE)
    stamp().touch()
    say(f"{IMAGE} is ready")


if __name__ == "__main__":
    main()
