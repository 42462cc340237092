"""Do our kernel modules keep the kernel's rules, and do they build for every kernel whose headers are here?"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ROOT / "build/lab/checks"
CHECKPATCH = CHECKS / "checkpatch/checkpatch.pl"
MODULES = ("nvstream", "lab")
SOURCES = sorted(path for module in MODULES for path in (ROOT / "kmod" / module).glob("*.[ch]"))
# The machine's, and those that scripts/module_checks.py fetched.
HEADERS = [*sorted(Path("/usr/src").glob("linux-headers-*-amd64")),
           *sorted(CHECKS.glob("headers/usr/src/linux-headers-*-amd64"))]
KERNELS = ("6.1", "6.12")
REMEDY = "make lab-packages setup-lab"


def headers_of(kernel: str) -> Path:
    """The headers of a kernel's series. Skips, loudly, where there are none."""
    found = [path for path in HEADERS if path.name.startswith(f"linux-headers-{kernel}.")]
    if not found or not shutil.which("gcc"):
        pytest.skip(f"NOT TESTED: the kernel modules with Linux {kernel}: no headers or no gcc ({REMEDY})")
    return found[-1]


def built(module: str, headers: Path, folder: Path, *options: str) -> str:
    """What a build in a copy says."""
    copy = folder / module
    shutil.copytree(ROOT / "kmod" / module, copy)
    # BTF wants pahole, and says nothing of our code.
    command = ["make", "-C", str(headers), f"M={copy}", "CONFIG_DEBUG_INFO_BTF_MODULES=", *options, "modules"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def complaints(said: str) -> list[str]:
    """Lines of a compiler or of sparse about our code, and of modpost about our symbols.

    That a distribution has updated its compiler since it built the kernel is none.
    """
    found = [line for line in said.splitlines() if re.search(r"\b(warning|error|WARNING|ERROR)\b", line)]
    return [line for line in found if "the compiler differs from the one used to build the kernel" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_builds_without_a_warning(kernel: str, module: str, tmp_path: Path) -> None:
    said = built(module, headers_of(kernel), tmp_path, "W=1")
    assert list((tmp_path / module).glob("*.ko")) and not complaints(said), said


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sparse_finds_nothing(kernel: str, module: str, tmp_path: Path) -> None:
    headers = headers_of(kernel)
    if not shutil.which("sparse"):
        pytest.skip(f"NOT TESTED: the kernel modules with sparse, which is not installed ({REMEDY})")
    said = built(module, headers, tmp_path, "C=2")
    assert "CHECK" in said and not complaints(said), said


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_checkpatch_finds_nothing(source: Path) -> None:
    if not CHECKPATCH.exists() or not shutil.which("perl"):
        pytest.skip(f"NOT TESTED: the kernel modules with checkpatch.pl, which is not here ({REMEDY})")
    # A module of its own has to know the kernel's version; lines are as long as in the rest of the tree.
    options = ["--no-tree", "--strict", "--terse", "--show-types", "--max-line-length=120",
               "--ignore=LINUX_VERSION_CODE"]
    done = subprocess.run(["perl", CHECKPATCH, *options, "--file", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
