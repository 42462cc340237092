"""Inside the guest: how many bytes a second do one drive and four bring, and how many reads are under way on each?

Stripes as an import lays them, each drive in turn. A drive here moves no bytes and answers after a fixed time: what it
brings is what is under way on it, so a number of reads that all drives must share would show.

    python -m bench.nvme_stripes ROUNDS RESULT.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.nvme_guest import BLOCK, DEPTH, NBYTES, SECONDS, through_vfio
from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.bandwidth import SourceRange, measure
from nvdma.nvme.drive import Drive
from nvdma.pci.address import PciAddress
from nvdma.types import Completion, Source
from nvstreamd.weights.packed.layout import STRIPE
from vm.guest.machine import controllers, give_back

SERIALS = ("LAB0", "LAB1", "LAB2", "LAB3")
WAYS = {"one_drive": SERIALS[:1], "four_drives": SERIALS}


class Watched(NvmeBackend):
    """NvmeBackend that counts, at each wait, the reads that are under way on each drive."""

    waits = 0
    under_way: tuple[int, ...] = ()

    def wait(self, timeout: float) -> list[Completion]:
        """See NvmeBackend."""
        here = [len(drive.flights) for drive in self._of_drives]
        self.under_way = tuple(map(sum, zip(here, self.under_way or [0] * len(here), strict=True)))
        self.waits += 1
        return super().wait(timeout)


def stripes(drives: int) -> list[SourceRange]:
    """What a pass over a model of NBYTES on each drive reads, in order."""
    return [SourceRange(number % drives, number // drives * STRIPE, STRIPE)
            for number in range(drives * NBYTES // STRIPE)]


def read(addresses: Sequence[PciAddress]) -> dict[str, object]:
    """Bytes a second from these drives, and on average how many reads were under way on each."""
    with ExitStack() as stack:
        drives = [Drive(through_vfio(address, stack), "nvme_host", DEPTH) for address in addresses]
        arena = stack.enter_context(Arena(len(drives) * DEPTH * BLOCK, huge_pages=True))
        sources = [Source(-1, f"drive {number}", NBYTES) for number in range(len(drives))]
        places = [OnDrive(number, 1, 0) for number in range(len(drives))]
        backend = Watched("nvme_host", drives, places, sources, arena)
        backend.open()
        stack.callback(backend.close)
        nbytes, seconds = 0, 0.0
        while seconds < SECONDS:
            found = measure(backend, sources, arena, BLOCK, backend.facts.depth, ranges=stripes(len(drives)))
            nbytes, seconds = nbytes + found.nbytes, seconds + found.seconds
        return {"rate": nbytes / seconds, "in_flight": [count / backend.waits for count in backend.under_way]}


def main() -> None:
    """All rounds, one warming up."""
    rounds, result = int(sys.argv[1]), Path(sys.argv[2])
    for name in ("nvme", "vfio-pci"):
        subprocess.run(["modprobe", name], check=True)
    known = controllers(len(SERIALS))
    samples: dict[str, list[dict[str, object]]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, serials in list(WAYS.items())[:: 1 if number % 2 else -1]:
            found = read([known[serial] for serial in serials])
            print(f"{name}: {found}", flush=True)
            if number:
                samples[name].append(found)
    for address in known.values():
        give_back(address)
    result.write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
