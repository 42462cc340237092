"""On which machine is the service tested? A Debian with systemd as PID 1 and our package: a disk image in build/lab.

Made by mmdebstrap from the sources that this machine's apt has, so it needs root. The kernel is that of setup_lab.py.
Usage: build_image.py makes what is missing, nothing when all is there; build_image.py check says what is.
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

import build_deb
import initrd
import packaged

LAB = packaged.ROOT / "build/lab"
SERVICE = LAB / "service"
IMAGE, INITRD, BEFORE = SERVICE / "image.ext4", SERVICE / "initrd", SERVICE / "before"
RELEASE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "udev", "kmod", "dbus", "e2fsprogs", "init-system-helpers", "python3",
            "python3-venv", "python3-systemd", "dkms", "gcc", "make")
OPTIONS = ("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
           "--dpkgopt=path-exclude=/usr/share/locale/*", '--aptopt=APT::Install-Recommends "false"')
PROXY = re.compile(r"Acquire::https?::(.*::)?(proxy|CaInfo)", re.IGNORECASE)
PROGRAMS = ("qemu-system-x86_64", "busybox", "mmdebstrap", "mke2fs")
# Modules for devices that QEMU has not given the guest, nearly half of all: depmod, which DKMS runs, reads each.
FOREIGN = ("sound", "drivers/media", "drivers/net", "drivers/iio", "drivers/hwmon", "drivers/comedi")
MIB = 1 << 20
ROOM = 512 * MIB
# What the guest does beside being a Debian: it runs the job that the host left in the shared folder, and powers off.
JOB_UNIT = """\
[Unit]
Description=What the host wants to know
RequiresMountsFor=/lab
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=exec
# As in a shell: dkms counts on it.
IgnoreSIGPIPE=no
ExecStart=/bin/bash /lab/share/job

[Install]
WantedBy=multi-user.target
"""
SHARE_UNIT = """\
[Mount]
What=lab
Where=/lab
Type=9p
Options=trans=virtio,version=9p2000.L,msize=262144
"""


class Unreachable(Exception):
    """The bare system cannot be had now."""


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"build-image: {text}", file=sys.stderr, flush=True)


def missing() -> str:
    """Why no image can be made here; empty when one can."""
    folders = [*os.environ["PATH"].split(":"), "/sbin", "/usr/sbin"]
    absent = [name for name in PROGRAMS if not any((Path(folder) / name).exists() for folder in folders)]
    if absent:
        return f"{', '.join(absent)} not installed (make lab-packages)"
    if not (LAB / "root").exists():
        return f"no kernel in {LAB} (make setup-lab)"
    if os.getuid():
        return "making a Debian image needs root"
    if not headers_known():
        return f"apt has no headers of the kernel {kernel()} any more (rm -r {LAB}/root && make setup-lab)"
    return "" if sources() else f"apt here has no sources of Debian's {RELEASE} (apt-get update?)"


def kernel() -> str:
    """The version of the kernel that guests boot."""
    (found,) = (path.name for path in (LAB / "root/lib/modules").iterdir())
    return found


def headers_known() -> bool:
    """Whether a module for that kernel can be built in the image: its headers are there, or apt has them."""
    if bare().exists() or not sources():
        return True
    shown = subprocess.run(["apt-cache", "show", f"linux-headers-{kernel()}"], capture_output=True, check=False)
    return not shown.returncode


def packages() -> tuple[str, ...]:
    """What a machine of an administrator has who wants our module: DKMS, and the kernel's headers."""
    return (*PACKAGES, f"linux-headers-{kernel()}")


def sources() -> str:
    """Where this machine's apt has the release from, as lines for sources.list(5)."""
    if not shutil.which("apt-get"):
        return ""
    fields = "$(ORIGIN) $(CODENAME) $(REPO_URI) $(COMPONENT)"
    listed = subprocess.run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
                            capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listed.splitlines()]
    return "".join(f"deb {words[2]} {words[1]} {words[3]}\n" for words in found
                   if len(words) == 4 and words[0] == "Debian" and words[1].partition("-")[0] == RELEASE)


def proxies() -> list[str]:
    """How this machine's apt reaches its sources, as options of mmdebstrap."""
    listed = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [f"--aptopt={line}" for line in listed.splitlines() if PROXY.match(line)]


def bare() -> Path:
    """Where the bare system lies as an archive, for as long as its packages and sources are the same."""
    key = hashlib.sha256("\n".join([RELEASE, *packages(), *OPTIONS, sources()]).encode()).hexdigest()[:16]
    return LAB / f"debian-{key}.tar"


def fetched() -> Path:
    """The bare system, made when it is not there. Raises Unreachable."""
    archive = bare()
    if not archive.exists():
        say(f"fetching Debian's {RELEASE}")
        for older in LAB.glob("debian-*.tar"):
            older.unlink()
        partial = archive.with_suffix(".partial.tar")
        included = f"--include={','.join(packages())}"
        made = subprocess.run(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", included, *OPTIONS,
                               *proxies(), RELEASE, partial, "-"], input=sources(), text=True, check=False)
        if made.returncode:
            raise Unreachable(f"mmdebstrap ended with status {made.returncode} (can Debian's mirror be reached?)")
        partial.rename(archive)
    return archive


def ready() -> Path:
    """A file that is there when the image is that of this tree."""
    return SERVICE / f"ready-{packaged.digest()}-{kernel()}-{hashlib.sha256(sources().encode()).hexdigest()[:8]}"


def install(package: Path, root: Path) -> None:
    """Our package, as dpkg installs it; what was there before is listed, for its removal to be compared with."""
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    BEFORE.write_text("".join(f"/{name}\n" for name in found))
    shutil.copyfile(package, root / "package.deb")
    alone = ["unshare", "--pid", "--fork", f"--mount-proc={root}/proc", "chroot", str(root)]
    done = subprocess.run([*alone, "dpkg", "--install", "/package.deb"], capture_output=True, text=True, check=False,
                          env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"})
    if done.returncode:
        sys.exit(f"build-image: the package cannot be installed:\n{done.stdout}{done.stderr}")
    (root / "package.deb").unlink()


def prepare(root: Path) -> None:
    """The kernel's modules, and the job that a host may leave."""
    # The headers have made a folder there.
    shutil.copytree(LAB / "root/lib/modules", root / "usr/lib/modules", symlinks=True, dirs_exist_ok=True)
    for kind in FOREIGN:
        shutil.rmtree(root / "usr/lib/modules" / kernel() / "kernel" / kind)
    units = root / "etc/systemd/system"
    (units / "lab.mount").write_text(SHARE_UNIT)
    (units / "lab.service").write_text(JOB_UNIT)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "lab.service").symlink_to("../lab.service")
    (root / "lab").mkdir()


def make() -> None:
    """The image, as a whole or not at all. Raises Unreachable."""
    stamp = ready()
    package, archive = build_deb.build(), fetched()
    say("installing the package into an image")
    shutil.rmtree(SERVICE, ignore_errors=True)
    SERVICE.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=LAB) as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        subprocess.run(["tar", "-C", root, "--numeric-owner", "--xattrs", "-xf", archive], check=True)
        prepare(root)
        install(package, root)
        used = int(subprocess.run(["du", "-sm", root], capture_output=True, text=True, check=True).stdout.split()[0])
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, IMAGE, f"{used + (ROOM // MIB)}M"], check=True)
    INITRD.write_bytes(initrd.archive(LAB / "root"))
    stamp.touch()


def main() -> None:
    """Makes, or checks."""
    why = missing()
    if sys.argv[1:] == ["check"]:
        sys.exit(why or (None if ready().exists() else f"no image of this tree in {SERVICE} (make setup-image)"))
    try:
        if not why and not ready().exists():
            make()
    except Unreachable as error:
        why = str(error)
    if why:
        say(f"{why}: the service will not be tested on a machine with systemd")


if __name__ == "__main__":
    main()
