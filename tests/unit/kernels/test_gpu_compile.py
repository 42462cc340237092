"""Does every unit compile for every card, where there is none, and only once; and is it said why where it does not?"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nvstreamd.errors import KernelError
from nvstreamd.kernels.gpu_compile import Nvrtc
from nvstreamd.kernels.gpu_form import PIECE_BYTES
from nvstreamd.kernels.gpu_units import OF_ROWS, WORDS, Unit, of_type
from nvstreamd.text import MESSAGE_BYTES

ELF = b"\x7fELF"
UNITS = {unit.name: unit for unit in (OF_ROWS, *map(of_type, PIECE_BYTES))}
# Tensor cores of both ways to hold scales, with minimums and without, and all that needs no type.
FEW = ("rows", "Q4_K", "MXFP4")
# It compiles soonest: whether the sources are sound is known after a change.
FIRST = (80, "rows")
CARDS = [pytest.param(capability, name, marks=[] if (capability, name) == FIRST else pytest.mark.thorough)
         for capability in (80, 86, 89, 90, 120) for name in (UNITS if capability in (80, 90) else FEW)]
# One that compiles at once: the words of CUDA alone.
SMALL = Unit("small", WORDS)


@pytest.mark.parametrize(("capability", "name"), CARDS)
def test_every_unit_becomes_machine_code_for_every_card(capability: int, name: str) -> None:
    assert Nvrtc(capability, None).compile(UNITS[name]).startswith(ELF)


def test_what_was_compiled_is_read_again_and_not_compiled(tmp_path: Path) -> None:
    image = Nvrtc(80, tmp_path / "deep/kept").compile(SMALL)
    (file,) = (tmp_path / "deep/kept").iterdir()
    assert image.startswith(ELF) and file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0
    other = ELF + b"of another card"
    file.write_bytes(hashlib.sha256(other).digest() + other)
    assert Nvrtc(80, file.parent).compile(SMALL) == other


def test_what_anything_else_would_become_has_a_name_of_its_own(tmp_path: Path) -> None:
    """One name for two would give a card the code of another, or of older sources."""
    defined = Unit(SMALL.name, SMALL.source, (("TYPE", "1"),))
    for capability in (80, 90):
        for unit in (SMALL, defined):
            Nvrtc(capability, tmp_path).compile(unit)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole[:40] + b"?" + whole[41:],
])
def test_a_damaged_file_is_compiled_anew_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    image = Nvrtc(80, tmp_path).compile(SMALL)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert Nvrtc(80, tmp_path).compile(SMALL) == image
    assert file.read_bytes() == whole and f"{file} is damaged" in caplog.text


def test_a_unit_that_does_not_compile_is_told_in_nvrtcs_words(tmp_path: Path) -> None:
    unknown = Unit("unknown", "of_type.cu", (("TYPE", "Q9_9"), ("PIECE_BYTES", "1152")))
    with pytest.raises(KernelError, match=r"unknown do not compile for sm_80: .*Q9_9.*undefined") as raised:
        Nvrtc(80, tmp_path).compile(unknown)
    assert len(raised.value.message.encode()) <= MESSAGE_BYTES and "\ufffd" not in raised.value.message
    assert not list(tmp_path.iterdir())


def test_a_card_that_nvrtc_does_not_know_is_refused_with_the_remedy() -> None:
    with pytest.raises(KernelError, match=r"does not compile for compute capability 99\.9") as raised:
        Nvrtc(999, None)
    assert "newer nvidia-cuda-nvrtc" in raised.value.hint


MISSING = """
import sys
from nvstreamd.errors import KernelError
from nvstreamd.kernels.gpu_compile import Nvrtc
{remove}
try:
    Nvrtc(80, None)
except KernelError as error:
    print(error.message, "|", error.hint)
"""
REMOVED = {
    "bindings": "sys.modules['cuda.bindings'] = None",
    "library": """
import cuda.pathfinder
def absent(name):
    raise cuda.pathfinder.DynamicLibNotFoundError(f'no lib{name}')
cuda.pathfinder.load_nvidia_dynamic_lib = absent
""",
}


@pytest.mark.parametrize("what", REMOVED)
def test_without_nvrtc_the_extras_that_bring_it_are_named(what: str) -> None:
    done = subprocess.run([sys.executable, "-c", MISSING.format(remove=REMOVED[what])], capture_output=True, text=True,
                          check=True)
    assert "NVRTC is missing" in done.stdout, done
    assert "nvstreamd[cuda13]" in done.stdout and "nvstreamd[cuda12]" in done.stdout
