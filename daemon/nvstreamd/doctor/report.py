"""How is a diagnosis told? Its data, and the two ways to write it down: lines of text, and JSON.

A verdict is nothing but checks that ran: a path is available when none of them found a reason against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

AVAILABLE, UNAVAILABLE = "available", "unavailable"
# A daemon without root and without a drive of its own needs one of them, and nothing else.
FILE_PATHS = ("pread", "uring")
INDENT = "    "
MB = 10**6
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reason:
    """A thing that is wrong, in a sentence, and exactly what to do about it."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the machine: what was `found`, why a path fails for it, and what else is worth knowing (`notes`)."""

    name: str
    found: str
    reasons: tuple[Reason, ...] = ()
    notes: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One path, which is a way to read, and the checks that ran for it. `summary` is shown when it is available.

    Of a device that could multiply, `path` is its kind.
    """

    path: str
    checks: tuple[Check, ...]
    summary: str = ""

    @property
    def is_available(self) -> bool:
        """True when no check has anything against it."""
        return not self.reasons

    @property
    def state(self) -> str:
        """AVAILABLE or UNAVAILABLE."""
        return AVAILABLE if self.is_available else UNAVAILABLE

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every reason against it."""
        return tuple(dict.fromkeys(reason for check in self.checks for reason in check.reasons))

    @property
    def notes(self) -> tuple[Reason, ...]:
        """Every note of its checks: things that would make the path better, and things worth knowing about it."""
        return tuple(dict.fromkeys(note for check in self.checks for note in check.notes))


@dataclass(frozen=True, slots=True)
class Probed:
    """The outcome of reading through a path: `nbytes` of `what` came at `bytes_per_second`, or it failed for `reason`.

    `compared` names the bytes that they were compared with, one by one.
    """

    path: str
    what: str
    nbytes: int = 0
    bytes_per_second: float = 0.0
    compared: str = ""
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The machine in brief. `secure_boot` is None when nobody can tell; `slow_links` are drives below their best.

    `notes` is what else an administrator should know.
    """

    kernel: str
    iommu: str
    lockdown: str
    secure_boot: bool | None
    drives: int
    gpus: int
    is_root: bool
    slow_links: tuple[Reason, ...] = ()
    notes: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All of a diagnosis: `verdicts` are of paths, `devices` of what could multiply beside the processor."""

    head: Head
    verdicts: tuple[Verdict, ...]
    probes: tuple[Probed, ...] = ()
    devices: tuple[Verdict, ...] = ()

    @property
    def serves(self) -> bool:
        """True when the embedded default can read files here, and no file came out wrong."""
        is_there = any(verdict.is_available for verdict in self.verdicts if verdict.path in FILE_PATHS)
        return is_there and not any(probed.reason for probed in self.probes if probed.path in FILE_PATHS)


def as_json(report: Report) -> str:
    """The report for programs; a path has its checks, so that each line can be traced to what was looked at."""
    return json.dumps({"machine": asdict(report.head), "paths": [_verdict("path", each) for each in report.verdicts],
                       "devices": [_verdict("device", each) for each in report.devices],
                       "probes": [asdict(each) for each in report.probes], "serves": report.serves}, indent=2) + "\n"


def as_text(report: Report) -> str:
    """The report for people: a line a path, what it lacks indented below, the remedy behind an arrow."""
    lines = [*_head(report.head), "", *_paths(report.verdicts)]
    if report.devices:
        lines += ["", "multiplies beside the processor:", *_paths(report.devices)]
    if report.probes:
        lines += ["", *(line for probed in report.probes for line in _probed(probed))]
    return "".join(f"{_plain(line)}\n" for line in lines)


def _verdict(kind: str, verdict: Verdict) -> dict[str, Any]:
    return {kind: verdict.path, "state": verdict.state, "summary": verdict.summary,
            "reasons": [asdict(reason) for reason in verdict.reasons],
            "notes": [asdict(note) for note in verdict.notes], "checks": [asdict(check) for check in verdict.checks]}


def _head(head: Head) -> Iterator[str]:
    secure_boot = {True: "on", False: "off", None: "unknown (no UEFI, or it cannot be read)"}[head.secure_boot]
    facts = (("kernel", head.kernel or "unknown"), ("IOMMU", head.iommu), ("lockdown", head.lockdown),
             ("Secure Boot", secure_boot), ("NVMe drives", head.drives), ("GPUs", head.gpus),
             ("run as", "root" if head.is_root else "an ordinary user, who may not read everything"))
    yield from (f"{name:<13} {value}" for name, value in facts)
    for note in (*head.slow_links, *head.notes):
        yield from _told("note: ", note)


def _paths(verdicts: Sequence[Verdict]) -> Iterator[str]:
    first: dict[Reason, str] = {}
    for verdict in verdicts:
        summary = verdict.summary if verdict.is_available else ""
        yield f"{verdict.path:<13} {verdict.state:<12} {summary}".rstrip()
        for mark, reasons in (("", verdict.reasons), ("note: ", verdict.notes)):
            for reason in reasons:
                yield from _told(mark, reason, first.setdefault(reason, verdict.path), verdict.path)


def _told(mark: str, reason: Reason, first: str = "", here: str = "") -> Iterator[str]:
    """A remedy that another path has above is not told again."""
    yield f"{INDENT}{mark}{reason.reason}"
    yield f"{INDENT * 2}-> {reason.remedy if first == here else f'as for {first}'}"


def _probed(probed: Probed) -> Iterator[str]:
    if probed.reason is None:
        compared = f", every byte as {probed.compared}" if probed.compared else ""
        yield (f"probe {probed.path:<13} {probed.bytes_per_second / MB:.1f} MB/s  "
               f"{probed.nbytes / MIB:.1f} MiB of {probed.what}{compared}")
        return
    yield f"probe {probed.path:<13} failed"
    yield from _told("", probed.reason)


def _plain(line: str) -> str:
    """Names come from drives and cards: nothing in them may speak to a terminal."""
    return "".join(each if each.isprintable() else "?" for each in line)
