"""How is a drive, and what went wrong on it before? Its SMART and error logs as facts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvdma.nvme import spec
from nvdma.nvme.status import describe

KELVIN = 273
UNIT_BYTES = 1000 * 512
NO_ID = 0xFFFF


@dataclass(frozen=True, slots=True)
class Health:
    """A drive's SMART log (section 5.16.1.3). `warnings` are the critical ones in words, () when all is well.

    `temperature` in degrees Celsius, None when unknown; `percentage_used` of the expected life, may exceed 100; `spare`
    and `spare_threshold` in percent; `bytes_read` and `bytes_written` by hosts, to half a megabyte.
    """

    warnings: tuple[str, ...]
    temperature: int | None
    spare: int
    spare_threshold: int
    percentage_used: int
    bytes_read: int
    bytes_written: int
    power_cycles: int
    power_on_hours: int
    unsafe_shutdowns: int
    media_errors: int
    error_entries: int


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """An entry of a drive's error log (section 5.16.1.2). `qid` and `cid` are None when no one command was at fault.

    `count` numbers errors over the drive's life; `status` in the specification's words.
    """

    count: int
    qid: int | None
    cid: int | None
    status: str
    lba: int
    nsid: int


def parse_health(data: bytes) -> Health:
    """Reads a SMART / Health Information log, 512 bytes."""
    found = np.frombuffer(data, spec.SMART, count=1)[0]
    raised, kelvin = int(found["critical_warning"]), int(found["temperature"])
    return Health(
        warnings=tuple(words for bit, words in enumerate(spec.CRITICAL_WARNINGS) if raised >> bit & 1),
        temperature=kelvin - KELVIN if kelvin else None,
        spare=int(found["spare"]), spare_threshold=int(found["spare_threshold"]), percentage_used=int(found["used"]),
        bytes_read=int(found["units_read"]) * UNIT_BYTES, bytes_written=int(found["units_written"]) * UNIT_BYTES,
        power_cycles=int(found["power_cycles"]), power_on_hours=int(found["power_on_hours"]),
        unsafe_shutdowns=int(found["unsafe_shutdowns"]), media_errors=int(found["media_errors"]),
        error_entries=int(found["error_entries"]),
    )


def parse_error_log(data: bytes) -> tuple[ErrorEntry, ...]:
    """Reads an Error Information log, entries of 64 bytes, newest first; unused ones (count 0) are left out."""
    return tuple(_entry(found) for found in np.frombuffer(data, spec.ERROR) if found["count"])


def _entry(found: np.void) -> ErrorEntry:
    qid, cid = int(found["sqid"]), int(found["cid"])
    return ErrorEntry(
        count=int(found["count"]), qid=None if qid == NO_ID else qid, cid=None if cid == NO_ID else cid,
        status=describe(spec.ERROR_STATUS.get(int(found["status"]))), lba=int(found["lba"]), nsid=int(found["nsid"]),
    )
