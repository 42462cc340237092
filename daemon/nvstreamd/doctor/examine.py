"""What is there to say of this machine? Facts are taken, tried and judged, in this order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nvstreamd.config import Config
from nvstreamd.doctor import SCRATCH, devices
from nvstreamd.doctor.drive_checks import is_iommu_at_work
from nvstreamd.doctor.host import Host, host, process
from nvstreamd.doctor.ownership import Ownership, ownership
from nvstreamd.doctor.paths import Facts, verdicts
from nvstreamd.doctor.probe import probe_file, probe_scratch
from nvstreamd.doctor.report import FILE_PATHS, Head, Probed, Reason, Report, Verdict
from nvstreamd.doctor.scratch import trials
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.drivers import driver_of
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.facts import Link, NvmeController
from nvstreamd.memory import excess

UNKNOWN, MOST_LANES = float("inf"), 32


def examine(config: Config, claims: Claims, policy: Policy, probed: str | None = None) -> Report:
    """The whole diagnosis; with a probe of the file `probed`, of a scratch file for SCRATCH, of none for None.

    Raises NotFound and InvalidRequest for a file that cannot be probed.
    """
    found, owned = host(claims.system, process(claims.system)), ownership(claims, policy)
    judged = verdicts(Facts(found, trials(config.store), owned, config.memory))
    probes = () if probed is None else (*_file_probes(judged, config.store, probed), *_drive_probes(claims, owned))
    return Report(replace(head(found), notes=_memory_notes(config, claims)), judged, probes,
                  devices.verdicts(found))


def _memory_notes(config: Config, claims: Claims) -> tuple[Reason, ...]:
    found = excess(config.memory, claims.system.root)
    return () if found is None else (Reason(found, "set `memory` to less: models that do not fit are refused"),)


def head(found: Host) -> Head:
    """The machine in brief."""
    machine = found.machine
    iommu = f"at work ({', '.join(found.iommus)})" if is_iommu_at_work(found) else "none at work"
    links = (_slow_link(each) for each in machine.controllers)
    return Head(machine.kernel, iommu, machine.lockdown, machine.secure_boot, len(machine.controllers),
                len(machine.gpus), found.process.is_root, tuple(link for link in links if link))


def _file_probes(judged: tuple[Verdict, ...], store: Path, probed: str) -> tuple[Probed, ...]:
    paths = [verdict.path for verdict in judged if verdict.path in FILE_PATHS and verdict.is_available]
    return probe_scratch(paths, store) if probed == SCRATCH else probe_file(paths, Path(probed))


def _drive_probes(claims: Claims, owned: Ownership) -> Iterator[Probed]:
    if owned.claimed:
        # numpy is loaded with it: for those alone who have a claimed drive.
        from nvstreamd.doctor.probe_drive import probe_claimed
        from nvstreamd.hardware.held import held_drive

        for address, serial in owned.claimed.items():
            yield probe_claimed(held_drive(serial, str(address), driver_of(claims.system, str(address)) or ""))


def _slow_link(controller: NvmeController) -> Reason | None:
    link = controller.function.link
    if link is None or not _is_below(link):
        return None
    name = f"{controller.address} ({controller.model or 'NVMe drive'})"
    return Reason(f"the link of {name} is {link.speed} x{link.width}, the drive can do {link.max_speed} "
                  f"x{link.max_width}: reads are slower for it",
                  "put it into a slot of that generation and width, and set the slot's speed to Auto in the firmware")


def _is_below(link: Link) -> bool:
    pairs = (_number(link.speed), _number(link.max_speed)), (_lanes(link.width), _lanes(link.max_width))
    return any(now < best < UNKNOWN for now, best in pairs)


def _lanes(text: str) -> float:
    """Emulated links have 0 lanes now and 255 at most (PCIe has 1 to 32)."""
    lanes = _number(text)
    return lanes if 1 <= lanes <= MOST_LANES else UNKNOWN


def _number(text: str) -> float:
    """The number that begins it ("16.0 GT/s PCIe"); none, as for a link that is down, is no reason to complain."""
    try:
        return float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return UNKNOWN
