"""What must be on a machine before guests can be booted? A stock Debian kernel and our module for it, in build/lab.

Installs nothing on the machine and needs no root; `setup_lab.py packages` does both, with apt-get: QEMU and the few
programs beside it. Where they are missing the guests' tests are skipped, and say so.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import module_checks

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / "build/lab"
# Ours, and what stands in for hardware in tests.
MODULES = ("nvstream", "lab")
PACKAGES = ("qemu-system-x86", "busybox-static", "kmod", "util-linux", "fio", "e2fsprogs", "fdisk",
            "linux-headers-amd64", "gcc", "make", "sparse", "mmdebstrap", "libsystemd-dev", "pkg-config")
META_PACKAGE = "linux-image-amd64"


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"setup-lab: {text}", file=sys.stderr, flush=True)


def install_packages() -> None:
    """QEMU and what the guests' root file system, which is this machine's, must have."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
    subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES], env=environment,
                   check=True, stdout=subprocess.DEVNULL)


def kernel_package() -> str | None:
    """The package of the kernel whose headers are installed, otherwise of the distribution's present one."""
    headers = sorted(Path("/usr/src").glob("linux-headers-*-amd64"))
    if headers:
        return headers[-1].name.replace("headers", "image")
    if not shutil.which("apt-cache"):
        return None
    listed = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Depends: (linux-image-[0-9]\S+)", listed)
    return found[1] if found else None


def unpack_kernel(package: str) -> None:
    """Image and modules below build/lab/root, as depmod(8) wants them."""
    say(f"fetching {package}")
    LAB.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LAB) as scratch:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=scratch, check=True, stderr=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.deb")
        root = Path(scratch) / "root"
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
        (modules,) = (root / "lib/modules").iterdir()
        subprocess.run([shutil.which("depmod") or "/sbin/depmod", "-b", str(root), modules.name], check=True)
        root.rename(LAB / "root")


def build_module(name: str) -> None:
    """Our module for the unpacked kernel, where its headers are installed; a test without it is skipped."""
    (version,) = (path.name for path in (LAB / "root/lib/modules").iterdir())
    headers = Path("/usr/src") / f"linux-headers-{version}"
    source, target = ROOT / "kmod" / name, LAB / name
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(source.iterdir()))).hexdigest()[:16]
    stamp = target / f"ready-{version}-{digest}"
    if stamp.exists():
        return
    if not headers.exists():
        say(f"no {headers}: tests of the module {name} will be skipped (make lab-packages, as root, installs it)")
        return
    say(f"building the module {name} for {version}")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    built = subprocess.run(["make", "-C", str(headers), f"M={target}", "modules"], capture_output=True, text=True,
                           check=False)
    if built.returncode:
        sys.exit(f"setup-lab: {name} does not build for {version}:\n{built.stdout}{built.stderr}")
    stamp.touch()


def ready() -> bool:
    """Whether the kernel is unpacked, now or before."""
    if (LAB / "root").exists():
        return True
    if not shutil.which("qemu-system-x86_64"):
        say("no QEMU here: tests of the hardware side will be skipped (make lab-packages, as root, installs it)")
        return False
    package = kernel_package()
    if package is None:
        say(f"apt knows no {META_PACKAGE} here: tests of the hardware side will be skipped (apt-get update?)")
        return False
    unpack_kernel(package)
    return True


def main() -> None:
    """Fetches and builds what is missing, nothing when all is there."""
    if sys.argv[1:] == ["packages"]:
        install_packages()
    elif ready():
        for name in MODULES:
            build_module(name)
        module_checks.fetch()


if __name__ == "__main__":
    main()
