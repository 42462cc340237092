"""Which drives are ours, and which might be? The journal of claims and the configuration, as facts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nvdma.pci.address import PciAddress
from nvstreamd.doctor.report import Reason
from nvstreamd.hardware.claims import Claims
from nvstreamd.hardware.eligibility import Policy


@dataclass(frozen=True, slots=True)
class Ownership:
    """`claimed` are serial numbers by address; `unread` says why the journal, or a claim in it, could not be read."""

    policy: Policy
    claimed: Mapping[PciAddress, str]
    unread: Reason | None = None


def ownership(claims: Claims, policy: Policy) -> Ownership:
    """The claims as the journal has them now."""
    directory = claims.journal.directory
    try:
        # A listing of a directory that may not be read comes out empty.
        if os.path.exists(directory) and not os.access(directory, os.R_OK | os.X_OK):
            return Ownership(policy, {}, Reason(f"the journal of claims, {directory}, may not be read",
                                                "sudo nvstreamd doctor"))
        held, (_, failures) = claims.held(), claims.journal.look()
    except OSError as error:
        return Ownership(policy, {}, Reason(f"the journal of claims, {directory}: {error.strerror}",
                                            "sudo nvstreamd doctor"))
    unread = Reason(failures[0].message, failures[0].hint) if failures else None
    return Ownership(policy, MappingProxyType({record.address: record.serial for record in held}), unread)
