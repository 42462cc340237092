"""How does the tree become a Debian package? Wheels of everything, unit files, the module's source for DKMS.

The package brings every wheel it needs, for each Python it may meet, and makes its own environment from them when it is
installed: nothing is fetched, nothing of the system's Python is touched. Usage: build_deb.py; writes build/deb/.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = ROOT / ".venv/bin/pip"
OUT = ROOT / "build/deb"
# Debian 12 has 3.11, Ubuntu 24.04 has 3.12.
PYTHONS = ("3.11", "3.12")
# Debian 12 has glibc 2.36; pip knows no "or older".
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(5, 37)), "manylinux2014_x86_64", "manylinux1_x86_64")
UNITS = ("nvstreamd.service", "nvstreamd.socket")
SCRIPTS = ("postinst", "prerm", "postrm")

CONTROL = """\
Package: nvstreamd
Version: {version}
Architecture: amd64
Maintainer: the nvstreamd project <nvstreamd@localhost>
Installed-Size: {kib}
Depends: python3 (>= 3.11), python3 (<< 3.13), python3-venv, init-system-helpers, systemd
Recommends: dkms
Section: net
Priority: optional
Description: language models larger than memory, streamed for every user of a machine
 A daemon keeps the weights of language models where they are, on an NVMe drive or any other disk, streams them
 through a memory budget that is a hard ceiling, and answers all users of the machine over gRPC on a Unix socket.
"""


def version() -> str:
    """The package's, as pyproject.toml has it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def collect_wheels(target: Path) -> None:
    """Our own wheels, and what they need for each Python."""
    target.mkdir(parents=True)
    subprocess.run([PIP, "wheel", "--quiet", "--no-deps", "-w", target, ROOT, ROOT / "clients/python"], check=True)
    for python in PYTHONS:
        platforms = [option for name in PLATFORMS for option in ("--platform", name)]
        subprocess.run([PIP, "download", "--quiet", "--only-binary=:all:", "--python-version", python, *platforms,
                        "--dest", target, *requirements()], check=True)


def requirements() -> list[str]:
    """What our projects need of others."""
    found: list[str] = []
    for path in (ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml"):
        found += tomllib.loads(path.read_text())["project"]["dependencies"]
    return sorted({name for name in found if not name.startswith("nvstream==")})


def place(source: Path, target: Path, mode: int = 0o644) -> None:
    """Copies a file to where the package has it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def link(path: Path, target: str) -> None:
    """A symbolic link in the package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def stage(tree: Path) -> None:
    """The package's files."""
    library = tree / "usr/lib/nvstreamd"
    collect_wheels(library / "wheels")
    link(tree / "usr/bin/nvstream", "../lib/nvstreamd/venv/bin/nvstream")
    link(tree / "usr/sbin/nvstreamd", "../lib/nvstreamd/venv/bin/nvstreamd")
    for unit in UNITS:
        place(ROOT / "systemd" / unit, tree / "usr/lib/systemd/system" / unit)
    place(ROOT / "systemd/nvstreamd.sysusers", tree / "usr/lib/sysusers.d/nvstreamd.conf")
    place(ROOT / "systemd/nvstreamd.toml", tree / "etc/nvstreamd/nvstreamd.toml")
    place(ROOT / "README.md", tree / "usr/share/doc/nvstreamd/README.md")
    place(ROOT / "LICENSE", tree / "usr/share/doc/nvstreamd/copyright")
    for source in sorted((ROOT / "kmod/nvstream").iterdir()):
        place(source, tree / f"usr/src/nvstream-{version()}" / source.name)


def describe(tree: Path) -> None:
    """What dpkg needs to know."""
    control = tree / "DEBIAN"
    control.mkdir()
    kib = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) >> 10
    (control / "control").write_text(CONTROL.format(version=version(), kib=kib))
    (control / "conffiles").write_text("/etc/nvstreamd/nvstreamd.toml\n")
    for name in SCRIPTS:
        script = control / name
        script.write_text((ROOT / "systemd/debian" / name).read_text().replace("@VERSION@", version()))
        script.chmod(0o755)


def main() -> None:
    """Builds build/deb/nvstreamd_VERSION_amd64.deb."""
    tree = OUT / "tree"
    shutil.rmtree(OUT, ignore_errors=True)
    tree.mkdir(parents=True)
    stage(tree)
    describe(tree)
    target = OUT / f"nvstreamd_{version()}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, target], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    print(f"{target}: {target.stat().st_size >> 20} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
