"""Which paths, or ways to read, does this machine have? Each has one pure function: facts in, a verdict out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvstreamd.doctor.drive_checks import drive_checks, usable
from nvstreamd.doctor.gpu_checks import (
    bar1,
    cufile_library,
    cufile_path,
    driver,
    gpu,
    io_memory,
    mounted_drive,
    p2pdma_driver,
    p2pdma_kernel,
    peers,
    static_bar1,
)
from nvstreamd.doctor.host import Host
from nvstreamd.doctor.ownership import Ownership
from nvstreamd.doctor.report import Check, Reason, Verdict
from nvstreamd.doctor.scratch import Trial, Trials

MIB = 1 << 20
OLDEST_KERNEL = (5, 15)
USE_URING = "use `uring`, the default of `backends` in the configuration"
SWITCH_ON = "`sysctl -w kernel.io_uring_disabled=0`, and the same in a file of /etc/sysctl.d"


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known. `memory` is the configuration's ceiling of weights, bytes: the arena that is registered."""

    host: Host
    trials: Trials
    ownership: Ownership
    memory: int


def pread(facts: Facts) -> Verdict:
    """Needs nothing."""
    return Verdict("pread", (_tried("read", facts.trials.pread),), facts.trials.pread.found)


def uring(facts: Facts) -> Verdict:
    """Needs io_uring, O_DIRECT where models are kept, and does better with locked memory."""
    trials = facts.trials
    early = (_kernel(facts.host), _sysctl(facts))
    # What the kernel says of itself is not told a second time in the words of a failed call.
    is_explained = any(check.reasons for check in early)
    ring = _tried("io_uring", trials.ring, is_explained)
    direct, written = _tried("O_DIRECT", trials.direct), _tried("store", trials.store)
    before = (*early, ring, direct)
    read = _tried("read", trials.uring, any(check.reasons for check in before))
    return Verdict("uring", (*before, written, read, _locked_memory(facts)),
                   f"{trials.uring.found}, {trials.ring.found}")


def cufile(facts: Facts) -> Verdict:
    """Needs a card that NVIDIA lists, and the way to it; else it copies silently."""
    host = facts.host
    return Verdict("cufile", (gpu(host), driver(host), cufile_library(host), cufile_path(host), _unread("cufile")))


def p2pdma(facts: Facts) -> Verdict:
    """Needs a kernel, a driver and a BAR that let O_DIRECT read into a card."""
    host = facts.host
    return Verdict("p2pdma", (p2pdma_kernel(host), gpu(host), driver(host), p2pdma_driver(host), bar1(host),
                              mounted_drive(host), _unread("p2pdma")))


def nvme_host(facts: Facts) -> Verdict:
    """Needs an IOMMU, VFIO and a drive to spare."""
    checks = drive_checks(facts.host, facts.ownership)
    free = ", ".join(str(each.address) for each in usable(facts.host, facts.ownership))
    return Verdict("nvme_host", checks, f"for {free}")


def nvme_vram(facts: Facts) -> Verdict:
    """Needs what nvme_host needs, and a card whose memory lies in BAR1."""
    return Verdict("nvme_vram", (*_into_card(facts), _unread("nvme_vram")))


def gpu_doorbell(facts: Facts) -> Verdict:
    """Needs what nvme_vram needs, and doorbells that a card may ring."""
    version = Check("version", "not part of this version", (Reason(
        "gpu_doorbell is not part of this version", USE_URING),))
    return Verdict("gpu_doorbell", (*_into_card(facts), io_memory(facts.host), version))


# In the order in which a report has them.
PATHS: tuple[Callable[[Facts], Verdict], ...] = (pread, uring, cufile, p2pdma, nvme_host, nvme_vram, gpu_doorbell)


def verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """One for each path."""
    return tuple(path(facts) for path in PATHS)


def _into_card(facts: Facts) -> tuple[Check, ...]:
    host, ownership = facts.host, facts.ownership
    return (*drive_checks(host, ownership), gpu(host), driver(host), bar1(host), static_bar1(host),
            peers(host, usable(host, ownership)))


def _tried(name: str, trial: Trial, is_explained: bool = False) -> Check:
    return Check(name, trial.found, (trial.reason,) if trial.reason and not is_explained else ())


def _unread(path: str) -> Check:
    """Whatever the machine has, a path is not there before nvstreamd reads through it."""
    return Check("version", "not implemented", (Reason(
        f"nvstreamd does not read through {path} yet: it is not part of this version", USE_URING),))


def _kernel(host: Host) -> Check:
    release = host.kernel.release or "unknown"
    if not host.kernel.is_older(*OLDEST_KERNEL):
        return Check("kernel", release)
    return Check("kernel", release, (Reason(f"kernel {release} is older than 5.15", "use Linux 5.15 or later"),))


def _sysctl(facts: Facts) -> Check:
    value = facts.host.io_uring_disabled
    found = "no such sysctl" if value is None else f"kernel.io_uring_disabled = {value}"
    told = Reason(f"io_uring is switched off for {'everybody' if value == '2' else 'all but a group'} ({found})",
                  SWITCH_ON if value == "2" else f"{SWITCH_ON}; or kernel.io_uring_group = the group of the engine's "
                  "user (`engine_user`)")
    if value in (None, "0"):
        return Check("sysctl", found)
    # Root, and who is in the group, still may: the engine's user may not be.
    if value == "1" and facts.trials.ring.reason is None:
        return Check("sysctl", found, notes=(told,))
    return Check("sysctl", found, (told,))


def _locked_memory(facts: Facts) -> Check:
    limit = facts.host.process.memlock
    if limit is None:
        return Check("locked memory", "no limit")
    found = f"RLIMIT_MEMLOCK is {limit / MIB:g} MiB"
    if limit >= facts.memory:
        return Check("locked memory", found)
    note = Reason(f"{found}, less than `memory` ({facts.memory / MIB:g} MiB): buffers are not registered, which costs "
                  "processor time", "`ulimit -l unlimited`, or `USER - memlock unlimited` in "
                  "/etc/security/limits.conf; the service has LimitMEMLOCK=infinity")
    return Check("locked memory", found, notes=(note,))
