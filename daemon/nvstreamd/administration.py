"""What can an administrator do on the command line? List drives, claim, release, put right after a crash, record."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nvdma.types import UNTRANSLATED
from nvstreamd.config import Config, load_config
from nvstreamd.doctor import SCRATCH
from nvstreamd.errors import ClaimRefused, NotFound
from nvstreamd.hardware.changes import NVSTREAM, driver_for
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import policy_of, refusals
from nvstreamd.hardware.facts import Machine, NvmeController
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.journal import Journal
from nvstreamd.hardware.record import record
from nvstreamd.hardware.system import System

GIB = 1 << 30


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands beside serving, which is what happens without one."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, run: Callable[[argparse.Namespace, Config, Claims], int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, help="a TOML file, see docs/administrator.md")
        command.set_defaults(run=run)
        return command

    doctor = add("doctor", "says which ways to read work on this machine, and what the others lack", _doctor)
    doctor.add_argument("--json", action="store_true", help="for programs, with every check that ran")
    doctor.add_argument("--probe", nargs="?", const=SCRATCH, metavar="FILE",
                        help="reads up to 64 MiB of FILE, or of a scratch file, through each path; compares, measures")
    add("drives", "lists NVMe drives, and why they may not be claimed", _drives)
    claim = add("claim", "takes a drive that the configuration names from the kernel's driver", _claim)
    claim.add_argument("serial")
    claim.add_argument("--dry-run", action="store_true", help="only says what would be done, and how it is undone")
    release = add("release", "gives a claimed drive back", _release)
    release.add_argument("serial")
    add("record", "prints all that is known of this machine, serial numbers included, for a bug report", _record)
    add("recover", "gives back every drive that a crash left claimed", _recover)


def run(given: argparse.Namespace) -> int:
    """Carries out the command that was given. Raises NvstreamError."""
    config = load_config(given.config, {})
    status: int = given.run(given, config, Claims(System(), Journal(config.claims)))
    return status


def _doctor(given: argparse.Namespace, config: Config, claims: Claims) -> int:
    """Exit status 0 when files can be read, through pread or uring."""
    # What it looks at is much: the other commands answer without.
    from nvstreamd.doctor.examine import examine
    from nvstreamd.doctor.report import as_json, as_text

    report = examine(config, claims, policy_of(config), given.probe)
    sys.stdout.write(as_json(report) if given.json else as_text(report))
    return 0 if report.serves else 1


def _drives(_: argparse.Namespace, config: Config, claims: Claims) -> int:
    machine = take(claims.system)
    held = {claimed.address: claimed.serial for claimed in claims.held()}
    for controller in machine.controllers:
        if controller.address in held:
            _say(f"{controller.address}  {held[controller.address]}  claimed")
            continue
        size = sum(disk.nbytes for disk in controller.namespaces) / GIB
        _say(f"{controller.address}  {controller.serial or '?'}  {controller.model or '?'}  {size:.1f} GiB")
        reasons = refusals(controller, machine, policy_of(config))
        for reason in reasons:
            _say(f"    {reason}")
        if not reasons:
            _say("    may be claimed")
    return 0


def _claim(given: argparse.Namespace, config: Config, claims: Claims) -> int:
    machine = take(claims.system)
    try:
        controller = _controller(machine, given.serial)
        changes = claims.plan(controller, machine, policy_of(config))
    except ClaimRefused as refused:
        for reason in refused.reasons:
            _say(f"refused: {reason}")
        return 1
    for change in changes:
        _say(f"{change.describe()}    (undone by: {change.describe_revert()})")
    if driver_for(controller.function) == NVSTREAM:
        _say(f"note: {UNTRANSLATED}")
    if not given.dry_run:
        claims.claim(controller, changes)
    return 0


def _release(given: argparse.Namespace, _: Config, claims: Claims) -> int:
    for claimed in claims.journal.records():
        if claimed.serial == given.serial:
            claims.release(claimed)
            return 0
    raise NotFound(f"no drive with serial {given.serial} is claimed", "`nvstreamd drives` lists them")


def _recover(_: argparse.Namespace, __: Config, claims: Claims) -> int:
    for released in claims.recover():
        _say(f"gave back {released.address} ({released.serial})")
    return 0


def _record(_: argparse.Namespace, __: Config, claims: Claims) -> int:
    sys.stdout.write(record(claims.system)[1])
    return 0


def _controller(machine: Machine, serial: str) -> NvmeController:
    for controller in machine.controllers:
        if controller.serial == serial:
            return controller
    known = ", ".join(found.serial for found in machine.controllers if found.serial) or "none"
    raise NotFound(f"no NVMe drive has serial {serial}", f"the kernel's driver knows: {known}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
