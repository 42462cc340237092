"""What does a controller say about itself and its namespaces, and can we work with that?

Nothing it says is believed before it was checked: sizes from here become shifts, divisors and loop bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nvdma.errors import ControllerRefused, NamespaceRefused
from nvdma.nvme import spec
from nvdma.pci.dma import PAGE

# NVM Command Set Specification 1.0, section 4.1.5.1: LBADS is at least 9; nobody formats more than 64 KiB a block.
SMALLEST_LBADS, LARGEST_LBADS = 9, 16
# Offsets are signed 64-bit numbers to the kernel and to numpy.
NAMESPACE_BYTES_LIMIT = 1 << 63
# More than any command can carry: 2**16 blocks of 64 KiB.
LARGEST_MDTS = 20


@dataclass(frozen=True, slots=True)
class ControllerFacts:
    """A controller, as Identify (section 5.17.2.1) tells it; what counts from zero there counts from one here.

    `max_transfer` is in bytes a command, None when there is no limit. `namespaces` is the largest namespace identifier.
    `sgls`: a Scatter Gather List may name a buffer, in place of PRPs. `shutdown_seconds` is how long a normal shutdown
    may take, 0 when it is not said.
    """

    serial: str
    model: str
    firmware: str
    version: tuple[int, int, int]
    max_transfer: int | None
    namespaces: int
    error_entries: int
    aborts: int
    async_events: int
    volatile_write_cache: bool
    sgls: bool
    shutdown_seconds: float


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """A namespace: `blocks` logical blocks of `block_bytes` each. `identity` is its NGUID or EUI64, "" without one."""

    nsid: int
    blocks: int
    block_bytes: int
    identity: str

    @property
    def nbytes(self) -> int:
        """All of its bytes."""
        return self.blocks * self.block_bytes


def parse_controller(data: bytes, name: str) -> ControllerFacts:
    """Reads Identify Controller, 4096 bytes. Raises ControllerRefused for entry sizes that are not ours."""
    found = _record(data, spec.IDENTIFY_CONTROLLER)
    _check_entry_size(found["sqes"], spec.SQE_BYTES, f"{name}: SQES")
    _check_entry_size(found["cqes"], spec.CQE_BYTES, f"{name}: CQES")
    version = int(found["ver"])
    return ControllerFacts(
        serial=_text(found["sn"]), model=_text(found["mn"]), firmware=_text(found["fr"]),
        version=(version >> 16, version >> 8 & 0xFF, version & 0xFF),
        max_transfer=_max_transfer(int(found["mdts"])),
        namespaces=int(found["nn"]), error_entries=int(found["elpe"]) + 1, aborts=int(found["acl"]) + 1,
        async_events=int(found["aerl"]) + 1,
        volatile_write_cache=bool(spec.VWC_PRESENT.get(int(found["vwc"]))),
        sgls=spec.SGLS_SUPPORT.get(int(found["sgls"])) in (1, 2),
        shutdown_seconds=int(found["rtd3e"]) / 1e6,
    )


def parse_namespace(data: bytes, nsid: int) -> NamespaceFacts:
    """Reads Identify Namespace of the NVM Command Set, 4096 bytes. Raises NamespaceRefused, saying what is wrong."""
    found = _record(data, spec.IDENTIFY_NAMESPACE)
    block_bytes = _block_bytes(found, nsid)
    blocks = int(found["nsze"])
    if not 0 < blocks * block_bytes < NAMESPACE_BYTES_LIMIT:
        raise NamespaceRefused(f"namespace {nsid}: {blocks} blocks of {block_bytes} bytes are no size of a drive")
    return NamespaceFacts(nsid, blocks, block_bytes, _identity(found))


def parse_active_namespaces(data: bytes, largest: int) -> tuple[int, ...]:
    """The identifiers in an Active Namespace ID list (Identify, CNS 02h), of which there are at most 1024 a page.

    Raises ControllerRefused when they do not increase, or go past `largest`.
    """
    listed = np.frombuffer(data, "<u4")
    ends = np.flatnonzero(listed == 0)
    found = listed[: ends[0]] if ends.size else listed
    identifiers = tuple(int(nsid) for nsid in found)
    if list(identifiers) != sorted(set(identifiers)) or any(nsid > largest for nsid in identifiers):
        raise ControllerRefused(f"active namespaces {identifiers[:8]} do not increase up to {largest}")
    return identifiers


def _record(data: bytes, dtype: np.dtype[np.void]) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def _text(field: bytes) -> str:
    """ASCII, padded with spaces; anything else in it becomes a question mark, as it ends in logs and terminals."""
    text = bytes(field).decode("ascii", "replace").strip(" \0")
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)


def _max_transfer(mdts: int) -> int | None:
    """MDTS is a power of two in units of the smallest memory page, which is ours (others are refused); 0: no limit."""
    return PAGE << min(mdts, LARGEST_MDTS) if mdts else None


def _check_entry_size(field: int, nbytes: int, what: str) -> None:
    exponent = nbytes.bit_length() - 1
    smallest, largest = spec.ENTRY_SIZE_MIN.get(int(field)), spec.ENTRY_SIZE_MAX.get(int(field))
    if not smallest <= exponent <= largest:
        raise ControllerRefused(f"{what} allows entries of {1 << smallest} to {1 << largest} bytes, not {nbytes}")


def _block_bytes(found: Any, nsid: int) -> int:
    flbas, formats = int(found["flbas"]), int(found["nlbaf"])  # the number of formats is 0's based
    index = spec.FLBAS_LOW.get(flbas)
    # The upper bits were reserved before there could be more than 16 formats.
    if formats > 15:
        index |= spec.FLBAS_HIGH.get(flbas) << 4
    if index > min(formats, 63):
        raise NamespaceRefused(f"namespace {nsid}: its format {index} is none of its {formats + 1}")
    lbaf = int(found["lbaf"][index])
    metadata, exponent = spec.LBAF_MS.get(lbaf), spec.LBAF_LBADS.get(lbaf)
    if metadata and spec.FLBAS_EXTENDED.get(flbas):
        raise NamespaceRefused(f"namespace {nsid}: {metadata} bytes of metadata are interleaved with every block")
    if metadata or spec.DPS_TYPE.get(int(found["dps"])):
        raise NamespaceRefused(f"namespace {nsid}: formatted with {metadata} bytes of metadata or protection a block")
    if not SMALLEST_LBADS <= exponent <= LARGEST_LBADS:
        raise NamespaceRefused(f"namespace {nsid}: blocks of 2**{exponent} bytes, not of 512 to 65536")
    return 1 << exponent


def _identity(found: Any) -> str:
    for field in ("nguid", "eui64"):
        number = bytes(found[field])
        if any(number):
            return number.hex()
    return ""
