"""What belongs to an installation, and where does it lie? The same for the Debian package and for `make install`.

It brings every wheel it needs, for each Python it may meet, and makes its own environment from them where it is
installed (systemd/setup): nothing is fetched there, nothing of the system's Python is touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "build/wheels"
PIP_HOME = ROOT / "build/pip"
PROJECTS = (ROOT, ROOT / "clients/python")
# Debian 12 has 3.11, Ubuntu 24.04 has 3.12.
PYTHONS = ("3.11", "3.12")
# Debian 12 has glibc 2.36; pip knows no "or older".
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(5, 37)), "manylinux2014_x86_64", "manylinux1_x86_64")
# Of what a card needs: the CUDA release that works with every driver from 525 on.
CUDA = "cuda12"
UNITS = ("nvstreamd.service", "nvstreamd.socket", "nvstreamd-card.service")
# What follows the prefix in a file that names its own home.
OWN_PLACES = re.compile(r"/usr/(lib|share)/")
CONFIG = Path("etc/nvstreamd/nvstreamd.toml")
SOURCES = ("daemon", "dma", "clients/python", "kmod/nvstream", "systemd", "scripts", "pyproject.toml", "README.md",
           "docs", "LICENSE")
# What lies among the sources and is made from them.
MADE = {"__pycache__", "_cpu.so", "build", "dist"}


def version() -> str:
    """The project's, as pyproject.toml has it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def digest(sources: Iterable[str] = SOURCES) -> str:
    """What an installation is made from."""
    found = hashlib.sha256()
    for source in sources:
        top = ROOT / source
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and not MADE & set(path.parts[len(ROOT.parts) :]):
                found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


def stage(tree: Path, prefix: str = "/usr", pythons: Sequence[str] = PYTHONS) -> None:
    """Puts every file where it belongs below `tree`; unit files and scripts name `prefix` as their home.

    Whatever the caller's umask is: engines, which are another user, read them.
    """
    os.umask(0o022)
    home = tree / prefix.lstrip("/")
    _collect_wheels(home / "lib/nvstreamd/wheels", pythons)
    _link(home / "bin/nvstream", "../lib/nvstreamd/venv/bin/nvstream")
    _link(home / "sbin/nvstreamd", "../lib/nvstreamd/venv/bin/nvstreamd")
    _adapt("setup", home / "lib/nvstreamd/setup", prefix, 0o755)
    for program in ("volume-id", "card-nodes"):
        _place(ROOT / "systemd" / program, home / "lib/nvstreamd" / program, 0o755)
    _adapt("nvstreamd.rules", home / "lib/udev/rules.d/61-nvstreamd.rules", prefix)
    for unit in UNITS:
        _adapt(unit, home / "lib/systemd/system" / unit, prefix)
    _place(ROOT / "systemd/nvstreamd.sysusers", home / "lib/sysusers.d/nvstreamd.conf")
    _place(ROOT / "systemd/nvstreamd.tmpfiles", home / "lib/tmpfiles.d/nvstreamd.conf")
    _place(ROOT / "systemd/nvstreamd.toml", tree / CONFIG)
    _place(ROOT / "systemd/noiommu.conf", home / "lib/nvstreamd/noiommu.conf")
    _place(ROOT / "README.md", home / "share/doc/nvstreamd/README.md")
    for page in sorted((ROOT / "docs").glob("*.md")):
        _place(page, home / "share/doc/nvstreamd/docs" / page.name)
    _place(ROOT / "LICENSE", home / "share/doc/nvstreamd/copyright")
    # DKMS looks nowhere else.
    for source in sorted((ROOT / "kmod/nvstream").iterdir()):
        _place(source, tree / f"usr/src/nvstream-{version()}" / source.name)


def stage_cuda(tree: Path, pythons: Sequence[str] = PYTHONS) -> None:
    """Puts what a card needs beside the wheels of an installation in /usr."""
    os.umask(0o022)
    pip, needed = _pip(), _requirements()
    for python in pythons:
        there = {wheel.name for wheel in _download(pip, needed, python).glob("*.whl")}
        # Together, so that there is one choice of releases for what both need.
        for wheel in sorted(_download(pip, sorted([*needed, *_of_cuda()]), python).glob("*.whl")):
            if wheel.name not in there:
                _place(wheel, tree / "usr/lib/nvstreamd/wheels-cuda" / wheel.name)
    _place(ROOT / "LICENSE", tree / "usr/share/doc/nvstreamd-cuda/copyright")


def _place(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _adapt(name: str, target: Path, prefix: str, mode: int = 0o644) -> None:
    """A file of systemd/ that names its own home."""
    _place(ROOT / "systemd" / name, target, mode)
    text = OWN_PLACES.sub(rf"{prefix}/\1/", target.read_text())
    target.write_text(text.replace("@VERSION@", version()).replace("@CUDA@", CUDA))


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _collect_wheels(target: Path, pythons: Sequence[str]) -> None:
    """Our own wheels, and what they need for each Python; each set is made once for as long as it is the same."""
    pip, needed = _pip(), _requirements()
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(_build, pip), *(pool.submit(_download, pip, needed, python) for python in pythons)]
    target.mkdir(parents=True)
    for wheels in made:
        for wheel in sorted(wheels.result().glob("*.whl")):
            _place(wheel, target / wheel.name)


def _pip() -> Path:
    """A pip of our own: none of the system's is needed."""
    if not (PIP_HOME / "bin/pip").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PIP_HOME)], check=True)
    return PIP_HOME / "bin/pip"


def _build(pip: Path) -> Path:
    """Our wheels, of this tree."""
    key = digest(("daemon", "dma", "clients/python", "pyproject.toml", "README.md", "scripts/build_kernels.py"))
    return _kept(f"own-{key}", [str(pip), "wheel", "--no-deps", "--wheel-dir"], [str(project) for project in PROJECTS])


def _download(pip: Path, needed: Sequence[str], python: str) -> Path:
    """Wheels of others that fulfil what is needed, for one Python."""
    key = hashlib.sha256("\n".join([*needed, *PLATFORMS]).encode()).hexdigest()[:16]
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    command = [str(pip), "download", "--only-binary=:all:", "--python-version", python, *platforms, "--dest"]
    kind = f"{CUDA}.python" if set(_of_cuda()) <= set(needed) else "python"
    return _kept(f"{kind}{python}-{key}", command, needed)


def _kept(name: str, command: Sequence[str | Path], arguments: Sequence[str]) -> Path:
    """A folder of wheels that a command of pip fills; what it says is shown only when it fails."""
    kept = WHEELS / name
    if not kept.exists():
        kind = name.partition("-")[0]
        for older in WHEELS.glob(f"{kind}-*"):
            shutil.rmtree(older)
        partial = WHEELS / f"partial-{kind}"
        shutil.rmtree(partial, ignore_errors=True)
        done = subprocess.run([*command, partial, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"packaged: pip failed:\n{done.stdout}{done.stderr}")
        partial.rename(kept)
    return kept


def _of_cuda() -> list[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return list(extras[CUDA])


def _requirements() -> list[str]:
    found: list[str] = []
    for project in PROJECTS:
        found += tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    return sorted({name for name in found if not name.startswith("nvstream==")})
