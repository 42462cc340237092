"""How does the tree become a Debian package? Its files and what dpkg needs to know: build/deb/nvstreamd_*.deb.

Usage: build_deb.py. A package that is there already, of the same sources, is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import packaged

OUT = packaged.ROOT / "build/deb"
SCRIPTS = ("postinst", "prerm", "postrm")

CONTROL = """\
Package: nvstreamd
Version: {version}
Architecture: amd64
Maintainer: the nvstreamd project <nvstreamd@localhost>
Installed-Size: {kib}
Depends: python3 (>= 3.11), python3 (<< 3.13), python3-venv, init-system-helpers, libseccomp2, libudev1,
 systemd
Recommends: dkms
Section: net
Priority: optional
Description: language models larger than memory, streamed for every user of a machine
 A daemon keeps the weights of language models where they are, on an NVMe drive or any other disk, streams them
 through a memory budget that is a hard ceiling, and answers all users of the machine over gRPC on a Unix socket.
"""


def describe(tree: Path) -> None:
    """What dpkg needs to know."""
    control = tree / "DEBIAN"
    control.mkdir()
    kib = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) >> 10
    (control / "control").write_text(CONTROL.format(version=packaged.version(), kib=kib))
    (control / "conffiles").write_text(f"/{packaged.CONFIG}\n")
    for name in SCRIPTS:
        shutil.copyfile(packaged.ROOT / "systemd/debian" / name, control / name)
        (control / name).chmod(0o755)


def build() -> Path:
    """The package of this tree."""
    target = OUT / f"nvstreamd_{packaged.version()}_amd64.deb"
    stamp = OUT / f"ready-{packaged.digest()}"
    if stamp.exists() and target.exists():
        return target
    tree = OUT / "tree"
    shutil.rmtree(OUT, ignore_errors=True)
    tree.mkdir(parents=True)
    packaged.stage(tree)
    describe(tree)
    # Wheels are compressed: trying harder takes long and saves nothing.
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, target], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    stamp.touch()
    return target


def main() -> None:
    """Builds build/deb/nvstreamd_VERSION_amd64.deb."""
    target = build()
    print(f"{target}: {target.stat().st_size >> 20} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
