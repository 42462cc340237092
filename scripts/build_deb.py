"""How does the tree become Debian packages? Their files and what dpkg needs to know: build/deb/nvstreamd*.deb.

nvstreamd is all of it but for what a card needs; nvstreamd-cuda brings that, half a gigabyte.
Usage: build_deb.py. A package that is there already, of the same sources, is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import packaged

OUT = packaged.ROOT / "build/deb"
CONTROL = """\
Package: {name}
Version: {version}
Architecture: amd64
Maintainer: the nvstreamd project <nvstreamd@localhost>
Installed-Size: {kib}
Section: net
Priority: optional
"""
MAIN = """\
Depends: python3 (>= 3.11), python3 (<< 3.13), python3-venv, init-system-helpers, libseccomp2, libudev1,
 systemd
Recommends: dkms, python3-systemd
Description: language models larger than memory, streamed for every user of a machine
 A daemon keeps the weights of language models where they are, on an NVMe drive or any other disk, streams them
 through a memory budget that is a hard ceiling, and answers all users of the machine over gRPC on a Unix socket.
"""
OF_CUDA = """\
Depends: nvstreamd (= {version})
Description: what nvstreamd needs to multiply on a card of NVIDIA's
 Packages of Python that call the card's driver, 525 or later, and NVIDIA's compiler, in the environment of nvstreamd.
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One of ours: how its files are put below a folder, what its control file says, which are configuration."""

    name: str
    stage: Callable[[Path], None]
    fields: str
    scripts: tuple[str, ...]
    conffiles: tuple[Path, ...] = ()


PACKAGES = (Package("nvstreamd", packaged.stage, MAIN, ("postinst", "prerm", "postrm"), (packaged.CONFIG,)),
            Package("nvstreamd-cuda", packaged.stage_cuda, OF_CUDA, ("postinst", "postrm")))


def describe(package: Package, tree: Path) -> None:
    """What dpkg needs to know."""
    control = tree / "DEBIAN"
    control.mkdir()
    kib = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) >> 10
    text = (CONTROL + package.fields).format(name=package.name, version=packaged.version(), kib=kib)
    (control / "control").write_text(text)
    if package.conffiles:
        (control / "conffiles").write_text("".join(f"/{path}\n" for path in package.conffiles))
    for name in package.scripts:
        shutil.copyfile(packaged.ROOT / "systemd/debian" / f"{package.name}.{name}", control / name)
        (control / name).chmod(0o755)


def build(package: Package = PACKAGES[0]) -> Path:
    """One package of this tree."""
    target = OUT / f"{package.name}_{packaged.version()}_amd64.deb"
    stamp = OUT / f"ready-{package.name}-{packaged.digest()}"
    if stamp.exists() and target.exists():
        return target
    tree = OUT / f"{package.name}.tree"
    shutil.rmtree(tree, ignore_errors=True)
    for older in [*OUT.glob(f"ready-{package.name}-[0-9a-f]*"), *OUT.glob(f"{package.name}_*.deb")]:
        older.unlink()
    tree.mkdir(parents=True)
    package.stage(tree)
    describe(package, tree)
    # Wheels are compressed: trying harder takes long and saves nothing.
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, target], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    stamp.touch()
    return target


def main() -> None:
    """Builds build/deb/NAME_VERSION_amd64.deb for each package."""
    for package in PACKAGES:
        target = build(package)
        print(f"{target}: {target.stat().st_size >> 20} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
