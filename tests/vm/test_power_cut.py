"""Is a machine that lost power in the middle of a claim put right by its next start? Two boots, one journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.lab import MIB, ROOT, Drive, Guest, Hardware, image

SECONDS = 240.0
CUT = """
import sys
from pathlib import Path
from nvdma.pci.address import PciAddress
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal
from nvstreamd.hardware.system import System

class Cut(System):
    def write(self, path, text):
        super().write(path, text)
        if path.endswith("driver_override"):
            Path("/proc/sysrq-trigger").write_text("b")

machine = take(System())
(drive,) = machine.controllers
claims = Claims(Cut(), Journal(Path(sys.argv[1])))
claims.claim(drive, claims.plan(drive, machine, Policy(frozenset({"LAB0"}))))
"""
RECOVER = f"""
modprobe nvme
while [ ! -e /dev/nvme0n1 ]; do :; done
ls $LAB/claims/*.claim > /dev/null || exit 3
printf 'claims = "%s"\\n' $LAB/claims > /run/nvstreamd.toml
{ROOT}/.venv/bin/nvstreamd recover --config /run/nvstreamd.toml || exit 4
[ -z "$(ls $LAB/claims | grep claim$)" ] || exit 5
[ "$(cat /sys/bus/pci/devices/0000:00:10.0/driver_override)" = "(null)" ] || exit 6
dd if=/dev/nvme0n1 of=/dev/null bs=1M count=4 || exit 7
"""


@pytest.mark.vm
def test_a_power_cut_in_the_middle_of_a_claim(guest_folder: Path) -> None:
    drive = Drive("LAB0", image(guest_folder / "drive", 8 * MIB), 0x10)
    guest = Guest(guest_folder, Hardware((drive,)))
    (guest_folder / "cut.py").write_text(CUT)
    first = guest.run(f"modprobe nvme; while [ ! -e /dev/nvme0n1 ]; do :; done\n"
                      f"{ROOT}/.venv/bin/python $LAB/cut.py $LAB/claims", SECONDS)
    assert first.status is None, f"the power was not cut:\n{first}"
    second = guest.run(RECOVER, SECONDS)
    assert second.status == 0, str(second)
