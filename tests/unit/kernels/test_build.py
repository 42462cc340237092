"""What happens to an installation on a machine without a C++ compiler?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from support.files import ROOT


def test_without_a_compiler_nothing_is_left_and_the_remedy_is_named(tmp_path: Path) -> None:
    """An older library would be worse than none: it is gone, and the torch reference takes over."""
    kernels = Path("daemon/nvstreamd/kernels")
    shutil.copytree(ROOT / kernels / "cpu", tmp_path / kernels / "cpu")
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts/build_kernels.py", tmp_path / "scripts")
    older = tmp_path / kernels / "_cpu.so"
    older.write_bytes(b"older")
    done = subprocess.run([sys.executable, script], env={"PATH": str(tmp_path)}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "apt-get install g++" in done.stderr
    assert not older.exists()
