"""Does an environment with the package nvstreamd-cuda have what a card needs, and one without it work all the same?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STAGE = """
import sys; sys.path.insert(0, "scripts")
from pathlib import Path; import packaged
tree = Path(sys.argv[1]); packaged.stage(tree, pythons=sys.argv[2:]); packaged.stage_cuda(tree, sys.argv[2:])
"""
# There is no card here: what is asked for is all that comes before one.
PROBE = """
from contextlib import ExitStack
from nvdma.errors import GpuUnavailable
from nvstreamd.kernels.gpu_compile import Nvrtc
from nvstreamd.kernels.gpu_open import open_card
from nvstreamd.kernels.gpu_units import OF_ROWS
print(len(Nvrtc(86, None).compile(OF_ROWS)))
try:
    open_card(64, 0, None, ExitStack())
except GpuUnavailable as error:
    print("unavailable:", error)
"""


def system_python() -> str:
    """The version of the Python that environments are made of; skips where it can make none."""
    script = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("NOT TESTED: the package nvstreamd-cuda: /usr/bin/python3 cannot make an environment here")
    return done.stdout.strip()


@pytest.mark.slow
def test_what_it_brings_compiles_for_a_card_and_asks_for_one(tmp_path: Path) -> None:
    python = system_python()
    subprocess.run([sys.executable, "-c", STAGE, tmp_path, python], cwd=ROOT, check=True)
    home = tmp_path / "usr/lib/nvstreamd"
    setup = home / "setup"
    setup.write_text(setup.read_text().replace("home=/usr/lib/nvstreamd", f"home={home}"))
    subprocess.run([setup, "environment"], check=True)
    probed = subprocess.run([home / "venv/bin/python", "-c", PROBE], capture_output=True, text=True, check=True)
    compiled, refused = probed.stdout.splitlines()
    assert int(compiled) > 10_000 and refused.startswith("unavailable:"), probed.stdout
    for wheel in (home / "wheels-cuda").iterdir():
        wheel.unlink()
    (home / "wheels-cuda").rmdir()
    subprocess.run([setup, "environment"], check=True)
    script = "import importlib.util as i, nvstreamd; print(i.find_spec('cupy'))"
    found = subprocess.run([home / "venv/bin/python", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "None"
