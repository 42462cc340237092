"""Does the hardware side work on a stock kernel? Each file of tests in guest/ runs in a guest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.lab import MIB, ROOT, Drive, Guest, Hardware, image

FILES = sorted(path.name for path in (Path(__file__).parent / "guest").glob("test_*.py"))
PYTEST = f"{ROOT}/.venv/bin/python -m pytest -p no:cacheprovider -q -rs --durations=8 tests/vm/guest"
SECONDS = 300.0


def hardware(folder: Path) -> Hardware:
    """Two drives, one with blocks of 4096 bytes, and a BAR."""
    plain = Drive("LAB0", image(folder / "drive0", 256 * MIB, filled=40 * MIB), 0x10, "mdts=8")
    large = Drive("LAB1", image(folder / "drive1", 64 * MIB, filled=20 * MIB), 0x11,
                  "logical_block_size=4096,physical_block_size=4096")
    return Hardware((plain, large), image(folder / "bar", 64 * MIB))


@pytest.mark.vm
@pytest.mark.parametrize("file", FILES)
def test_in_a_guest(file: str, guest_folder: Path) -> None:
    result = Guest(guest_folder, hardware(guest_folder)).run(f"{PYTEST}/{file}", SECONDS)
    assert result.status == 0, str(result)
    assert not result.faults, str(result)
