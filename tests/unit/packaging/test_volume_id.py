"""Does udev learn of a drive with models that it is none to format, and of any other drive nothing?"""

from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from nvstreamd.weights.packed.superblock import Superblock

PROGRAM = Path(__file__).resolve().parents[3] / "systemd/volume-id"
VOLUME = UUID("0123abcd-4567-89ab-cdef-00000000ff10")


def told(device: Path) -> list[str]:
    done = subprocess.run([PROGRAM, device], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_volume_is_named_with_its_uuid(tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.write_bytes(Superblock(2, VOLUME.hex, "LAB0", 1 << 30).packed())
    assert told(drive) == ["ID_FS_TYPE=nvstreamd", "ID_FS_USAGE=other", f"ID_FS_UUID={VOLUME}",
                           f"ID_FS_UUID_ENC={VOLUME}"]


@pytest.mark.parametrize("content", [b"", b"NVSTREA", bytes(4096), b"\xeb\x3c\x90NVSTREAM".ljust(4096, b"\n")])
def test_anything_else_is_not(tmp_path: Path, content: bytes) -> None:
    drive = tmp_path / "drive"
    drive.write_bytes(content)
    assert told(drive) == []
