"""What is built of the C++ kernels, where there is a compiler and where there is none?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from ctypes import sizeof
from pathlib import Path

from nvstreamd.kernels.cpu_structs import STRUCTS, header
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


def test_the_headers_structs_are_those_that_python_fills() -> None:
    assert (ROOT / "daemon/nvstreamd/kernels/cpu/structs.h").read_text() == header(), "run scripts/build_kernels.py"


def test_compilers_lay_structs_out_as_ctypes_does(tmp_path: Path) -> None:
    """A field that a compiler pads would be read from another place than it was written to."""
    checks = "".join(f"static_assert(sizeof({struct.__name__}) == {sizeof(struct)});\n" + "".join(
        f"static_assert(offsetof({struct.__name__}, {field}) == {getattr(struct, field).offset});\n"
        for field, *_ in struct._fields_) for struct in STRUCTS)
    source = tmp_path / "layout.cpp"
    source.write_text(f'#include <cstddef>\n#include "structs.h"\n{checks}')
    headers = ROOT / "daemon/nvstreamd/kernels/cpu"
    subprocess.run(["c++", "-std=c++17", "-fsyntax-only", "-I", headers, source], check=True)
