"""Does the hardware side work on a stock kernel? The files of tests in guest/ run in a few guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.lab import MIB, ROOT, Drive, Guest, Hardware, image, unless_it_hangs

FILES = sorted(path.name for path in (Path(__file__).parent / "guest").glob("test_*.py"))
# Plugins of packages that tests in a guest do not use take twenty seconds to import there.
PYTEST = f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {ROOT}/.venv/bin/python -m pytest -p no:cacheprovider -q -rs --durations=8"
SECONDS = 600.0
# A boot and the imports of a test run take a quarter of a minute. Files that are not here have a guest of their own.
TOGETHER = (("test_claims.py", "test_doctor.py", "test_uevents.py", "test_vfio.py", "test_vfio_window.py"),
            ("test_nvme_host.py", "test_kills.py", "test_kmod.py", "test_nvme_vram.py"),
            ("test_served_drives.py", "test_dmabuf.py", "test_leak.py"))
GUESTS = (*TOGETHER, *((file,) for file in FILES if not any(file in group for group in TOGETHER)))
# As in the files themselves.
UNREADABLE = {"test_nvme_host.py": 48 * MIB}
WITHOUT_IOMMU = "test_noiommu.py"
# Files whose tests fill the BAR, and where: as in guest/filling.py.
WITNESSED = ("test_nvme_vram.py", "test_vfio_window.py")
WITNESSED_OFFSET, WITNESSED_BYTES = 8 * MIB, 32 * MIB


def hardware(folder: Path, unreadable: int | None = None, *, iommu: bool = True) -> Hardware:
    """Two drives, one with blocks of 4096 bytes, and a BAR. A page of both may be one that cannot be read."""
    plain = Drive("LAB0", image(folder / "drive0", 256 * MIB, filled=40 * MIB), 0x10, "mdts=8", unreadable)
    large = Drive("LAB1", image(folder / "drive1", 64 * MIB, filled=20 * MIB), 0x11,
                  "logical_block_size=4096,physical_block_size=4096", unreadable)
    return Hardware((plain, large), image(folder / "bar", 64 * MIB), iommu)


def check_bar(folder: Path) -> None:
    """The drive wrote into the memory behind the BAR, and only where it was asked to."""
    with (folder / "drive0").open("rb") as drive:
        content = drive.read(WITNESSED_BYTES)
    assert content.strip(b"\0"), "the drive is empty: nothing could be told from it"
    found = (folder / "bar").read_bytes()
    end = WITNESSED_OFFSET + WITNESSED_BYTES
    assert found[WITNESSED_OFFSET:end] == content
    assert not any(found[:WITNESSED_OFFSET]) and not any(found[end:])


@pytest.mark.vm
@pytest.mark.parametrize("files", GUESTS, ids=lambda files: "-".join(Path(file).stem for file in files))
def test_in_a_guest(files: tuple[str, ...], guest_folder: Path) -> None:
    unreadable = next((UNREADABLE[file] for file in files if file in UNREADABLE), None)
    job = " ".join([PYTEST, *(f"tests/vm/guest/{file}" for file in files)])
    result = unless_it_hangs(lambda: Guest(
        guest_folder, hardware(guest_folder, unreadable, iommu=WITHOUT_IOMMU not in files)).run(job, SECONDS))
    assert result.status == 0, str(result)
    assert not result.faults, str(result)
    if set(WITNESSED) & set(files) and "NOT TESTED" not in result.output:
        check_bar(guest_folder)
