"""What is needed to see that our kernel module keeps the kernel's rules, and builds for later kernels as well?

The kernel's checkpatch.pl, which is in its source package alone, and headers of a later kernel than the machine's: both
in build/lab/checks, from apt. Nothing is installed and no root is needed. What cannot be had is not checked, and said.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CHECKS = Path(__file__).resolve().parent.parent / "build/lab/checks"
CHECKPATCH = CHECKS / "checkpatch/checkpatch.pl"
# What checkpatch.pl reads beside itself.
SCRIPTS = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")
SOURCE = "linux-source-6.1"
LATER = r"^linux-headers-(6\.12\.[0-9]+\S*)-amd64$"


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"module-checks: {text}", file=sys.stderr, flush=True)


def _download(folder: Path, *packages: str) -> list[Path]:
    subprocess.run(["apt-get", "download", "-qq", *packages], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return sorted(folder.glob("*.deb"))


def _checkpatch(scratch: Path) -> None:
    """139 MB are fetched for a few hundred KiB of them."""
    (package,) = _download(scratch, SOURCE)
    made = scratch / "checkpatch"
    made.mkdir()
    names = " ".join(f"'*/scripts/{name}'" for name in SCRIPTS)
    subprocess.run(["bash", "-c", f"set -o pipefail; dpkg-deb --fsys-tarfile {package} | "
                    f"tar -xO ./usr/src/{SOURCE}.tar.xz | "
                    f"tar -xJ -C {made} --strip-components=2 --wildcards {names}"], check=True)
    made.rename(CHECKPATCH.parent)


def _headers(scratch: Path) -> None:
    """17 MB: the newest of a later kernel that apt knows. Their makefile names the place where dpkg would put them."""
    listed = subprocess.run(["apt-cache", "search", "-n", LATER], capture_output=True, text=True, check=True).stdout
    known = (re.match(LATER, line.split()[0]) for line in listed.splitlines())
    versions = [found[1] for found in known if found and not re.search(r"-(cloud|rt)$", found[1])]
    version = max(versions, key=lambda text: [int(number) for number in re.findall(r"\d+", text)])
    root = scratch / "root"
    for package in _download(scratch, f"linux-headers-{version}-amd64", f"linux-headers-{version}-common",
                             f"linux-kbuild-{version}"):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    makefile = root / f"usr/src/linux-headers-{version}-amd64/Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{CHECKS}/headers/usr/src/"))
    root.rename(CHECKS / "headers")


def _fetch(what: str, target: Path, get: Callable[[Path], None]) -> None:
    if target.exists():
        return
    say(f"fetching {what}")
    CHECKS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKS) as scratch:
        try:
            get(Path(scratch))
        except (subprocess.CalledProcessError, ValueError) as error:
            say(f"{what} cannot be had here, its checks will be skipped (apt-get update?): {error}")


def fetch() -> None:
    """What is missing, nothing when all is there."""
    if not shutil.which("apt-get"):
        say("no apt-get here: the kernel module is checked less")
        return
    _fetch("the kernel's checkpatch.pl", CHECKPATCH.parent, _checkpatch)
    _fetch("headers of a later kernel", CHECKS / "headers", _headers)


if __name__ == "__main__":
    fetch()
