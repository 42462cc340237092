"""Inside the guest: how many bytes a second do fio through the kernel's driver and our own queues read, in turns?

    python -m bench.nvme_guest ROUNDS RESULT.json
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.nvme_msix import InterruptedBackend, InterruptingDrive
from nvdma.arena import Arena
from nvdma.backends.nvme import NvmeBackend, OnDrive
from nvdma.bandwidth import measure
from nvdma.nvme.drive import Drive
from nvdma.pci.access import VfioAccess
from nvdma.pci.address import PciAddress
from nvdma.pci.dma import BusAddresses
from nvdma.pci.kmod import KmodAccess
from nvdma.pci.kmod_open import open_node
from nvdma.pci.vfio import Container, Device
from nvdma.pci.vfio_open import open_function
from nvdma.pci.window import Window
from nvdma.types import Source
from vm.guest.machine import BAR_OWNER, block_device, controllers, give_back, hand_over
from vm.lab import LAB

MIB = 1 << 20
BLOCK, DEPTH = MIB // 2, 32
SECONDS = 4.0
NBYTES = 256 * MIB
MODULE = LAB / "nvstream/nvstream.ko"

Make = Callable[[Sequence[OnDrive], Sequence[Source], Arena], NvmeBackend]


def fio(address: PciAddress) -> dict[str, float]:
    """Sequential direct reads through the kernel's driver."""
    give_back(address)
    controllers()
    command = ["fio", "--name=read", f"--filename={block_device(address)}", "--readonly", "--rw=read", "--direct=1",
               "--ioengine=io_uring", f"--iodepth={DEPTH}", f"--bs={BLOCK}", f"--size={NBYTES}", "--time_based",
               f"--runtime={SECONDS:g}", "--output-format=json"]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["jobs"][0]
    nbytes, seconds = done["read"]["io_bytes"], done["read"]["runtime"] / 1e3
    cpu = (done["usr_cpu"] + done["sys_cpu"]) / 100 * seconds
    return {"rate": nbytes / seconds, "cpu_seconds_a_gb": cpu / nbytes * 1e9}


def ours(make: Make) -> dict[str, float]:
    """The same reads through a backend."""
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(DEPTH * BLOCK, huge_pages=True))
        source = Source(-1, "drive", NBYTES)
        backend = make([OnDrive(0, 1, 0)], [source], arena)
        backend.open()
        stack.callback(backend.close)
        before, nbytes, seconds = resource.getrusage(resource.RUSAGE_SELF), 0, 0.0
        while seconds < SECONDS:
            found = measure(backend, [source], arena, BLOCK, DEPTH)
            nbytes, seconds = nbytes + found.nbytes, seconds + found.seconds
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"rate": nbytes / seconds, "cpu_seconds_a_gb": cpu / nbytes * 1e9}


def through_vfio(address: PciAddress, stack: ExitStack) -> VfioAccess:
    """The drive, opened as an engine gets it."""
    hand_over(address, "vfio-pci")
    opened = open_function(address, stack)
    return VfioAccess(Container(opened.container), Device(opened.device))


def host(address: PciAddress) -> dict[str, float]:
    """Into host memory, through VFIO."""
    with ExitStack() as stack:
        drive = Drive(through_vfio(address, stack), "nvme_host", DEPTH)
        return ours(lambda places, sources, arena: NvmeBackend("nvme_host", [drive], places, sources, arena))


def host_msix(address: PciAddress) -> dict[str, float]:
    """The same, an interrupt in place of polling."""
    with ExitStack() as stack:
        drive = InterruptingDrive(through_vfio(address, stack), "nvme_host_msix", DEPTH)
        return ours(lambda places, sources, arena: InterruptedBackend(drive, places, sources, arena))


def vram(address: PciAddress) -> dict[str, float]:
    """Into the BAR that stands in for a GPU's, through our module."""
    with module():
        hand_over(address, "nvstream")
        with ExitStack() as stack:
            access = KmodAccess(open_node(address, stack))

            def window(_: Drive, inner: ExitStack) -> BusAddresses:
                return access.map_window(Window(BAR_OWNER, 2, 0, DEPTH * BLOCK), inner)

            drive = Drive(access, "nvme_vram", DEPTH)
            result = ours(lambda places, sources, arena: NvmeBackend("nvme_vram", [drive], places, sources, arena,
                                                                     target=window))
        give_back(address)
        return result


@contextmanager
def module() -> Iterator[None]:
    """Our module, loaded."""
    subprocess.run(["insmod", MODULE, "peers=1af4:1110"], check=True)
    try:
        yield
    finally:
        subprocess.run(["rmmod", "nvstream"], check=True)


def main() -> None:
    """All rounds, one warming up."""
    rounds, result = int(sys.argv[1]), Path(sys.argv[2])
    for name in ("nvme", "vfio-pci"):
        subprocess.run(["modprobe", name], check=True)
    address = controllers()["LAB0"]
    (Path("/sys/bus/pci/devices") / str(BAR_OWNER) / "enable").write_text("1")
    ways: dict[str, Callable[[PciAddress], dict[str, float]]] = {
        "fio": fio, "nvme_host": host, "nvme_host_msix": host_msix,
    }
    if MODULE.exists():
        ways["nvme_vram"] = vram
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        # Forth and back: none always follows the same other one.
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            begin, found = time.monotonic(), way(address)
            print(f"{name}: {found['rate'] / 1e6:.0f} MB/s, {time.monotonic() - begin:.1f} s", flush=True)
            if number:
                samples[name].append(found)
    result.write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
