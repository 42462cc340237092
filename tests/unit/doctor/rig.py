"""Which facts has a recorded machine, with a few files that are other ones? What the tests of the doctor judge."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvdma.pci.address import PciAddress
from nvstreamd.doctor.host import Process, host
from nvstreamd.doctor.ownership import Ownership
from nvstreamd.doctor.paths import Facts, verdicts
from nvstreamd.doctor.report import Verdict
from nvstreamd.doctor.scratch import Trial, Trials
from nvstreamd.hardware.eligibility import Policy
from nvstreamd.hardware.system import System
from support.machines import load

GIB = 1 << 30
ROOT = Process(0, None, frozenset())
USER = Process(1000, 8 << 20, frozenset())
WORKS = Trial("works")
ALL_WORK = Trials(WORKS, WORKS, WORKS, WORKS, WORKS)
SPARE, SYSTEM_DRIVE = PciAddress.parse("0000:44:00.0"), PciAddress.parse("0000:01:00.0")
READ_ALREADY = {"pread", "uring", "nvme_host"}


@dataclass(frozen=True, slots=True)
class Examined:
    """A machine and who looks at it; `serials` are those that the configuration names."""

    system: System
    process: Process = ROOT
    trials: Trials = ALL_WORK
    serials: frozenset[str] = frozenset({"SPARE001"})
    claimed: Mapping[PciAddress, str] = field(default_factory=dict)
    unsafe_noiommu: bool = False

    def verdicts(self) -> dict[str, Verdict]:
        """Each path's."""
        owned = Ownership(Policy(self.serials, self.unsafe_noiommu), self.claimed)
        found = verdicts(Facts(host(self.system, self.process), self.trials, owned, GIB))
        return {verdict.path: verdict for verdict in found}

    def but(self, **changes: object) -> Examined:
        """The same, looked at otherwise."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def put(self, path: str, text: str | None) -> Examined:
        """The same machine with a file that is another one, or is not there."""
        target = self.system.root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if text is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return self


def examined(name: str, root: Path) -> Examined:
    """One of our machines, looked at by root."""
    return Examined(load(name, root))


def reasons(verdict: Verdict) -> str:
    """All that is told against a path, with the remedies."""
    return "\n".join(f"{each.reason} -> {each.remedy}" for each in verdict.reasons)


def notes(verdict: Verdict) -> str:
    """What else is told."""
    return "\n".join(f"{each.reason} -> {each.remedy}" for each in verdict.notes)
