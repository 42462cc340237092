"""How is each command written as a submission queue entry? (NVM Express Base Specification 2.0, section 3.3.3.1)

Every builder returns an array of `spec.SQE`, shape (n,), without command identifiers: a queue puts those in. Arguments
of reads and writes may be arrays: the entries of a whole layer are prepared once and copied into rings many times.
Raises ValueError when a value does not fit into its field.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvdma.nvme import spec
from nvdma.nvme.spec import Entries

Numbers = int | npt.NDArray[np.uint64]

MAX_BLOCKS = 1 << 16


def identify(cns: int, nsid: int, page: int) -> Entries:
    """Identify (section 5.17) into the page at bus address `page`."""
    return _entry(spec.IDENTIFY, nsid=nsid, prp1=page, cdw10=cns)


def set_queue_count(pairs: int) -> Entries:
    """Set Features, Number of Queues (5.27.1.5): asks for that many I/O submission and completion queues."""
    wanted = spec.QUEUES_NSQ.put(pairs - 1) | spec.QUEUES_NCQ.put(pairs - 1)
    return _entry(spec.SET_FEATURES, cdw10=spec.FEATURE_FID.put(spec.FEATURE_NUMBER_OF_QUEUES), cdw11=wanted)


def create_completion_queue(qid: int, entries: int, ring: int, vector: int | None) -> Entries:
    """Create I/O Completion Queue (5.4): contiguous, at bus address `ring`; without `vector` it never interrupts."""
    interrupts = 0 if vector is None else spec.CQ_IEN.put(1) | spec.CQ_IV.put(vector)
    return _entry(spec.CREATE_IO_CQ, prp1=ring, cdw10=_queue(qid, entries), cdw11=spec.QUEUE_PC.put(1) | interrupts)


def create_submission_queue(qid: int, entries: int, ring: int) -> Entries:
    """Create I/O Submission Queue (5.5): contiguous, completing to the completion queue of the same identifier."""
    return _entry(spec.CREATE_IO_SQ, prp1=ring, cdw10=_queue(qid, entries),
                  cdw11=spec.QUEUE_PC.put(1) | spec.SQ_CQID.put(qid))


def delete_completion_queue(qid: int) -> Entries:
    """Delete I/O Completion Queue (5.6); its submission queue must be gone already."""
    return _entry(spec.DELETE_IO_CQ, cdw10=spec.QUEUE_QID.put(qid))


def delete_submission_queue(qid: int) -> Entries:
    """Delete I/O Submission Queue (5.7): when it has completed, the queue's commands are over."""
    return _entry(spec.DELETE_IO_SQ, cdw10=spec.QUEUE_QID.put(qid))


def get_log_page(log: int, nbytes: int, page: int) -> Entries:
    """Get Log Page (5.16) of the whole controller, `nbytes` (a multiple of 4, at most a page) to bus address `page`."""
    dwords = spec.LOG_NUMDL.put(nbytes // 4 - 1)
    return _entry(spec.GET_LOG_PAGE, nsid=spec.EVERY_NAMESPACE, prp1=page, cdw10=spec.LOG_LID.put(log) | dwords)


def async_event_request() -> Entries:
    """Asynchronous Event Request (5.2): completes when the controller has something to say, perhaps never."""
    return _entry(spec.ASYNC_EVENT_REQUEST)


def abort(qid: int, cid: int) -> Entries:
    """Abort (5.1) of one command of a submission queue."""
    return _entry(spec.ABORT, cdw10=spec.ABORT_SQID.put(qid) | spec.ABORT_CID.put(cid))


def flush(nsid: int) -> Entries:
    """Flush (7.1): what was written is on the medium when it completes."""
    return _entry(spec.FLUSH, nsid=nsid)


def read(nsid: int, lba: Numbers, blocks: Numbers, prp1: Numbers, prp2: Numbers) -> Entries:
    """Read (NVM Command Set Specification 1.0, section 3.2.4): `blocks` from `lba` on, to what the PRPs point at."""
    return _transfer(spec.READ, nsid, lba, blocks, (prp1, prp2))


def read_stretch(nsid: int, lba: int, blocks: int, address: int, nbytes: int) -> Entries:
    """The same into one stretch of `nbytes` at bus address `address`, for controllers that take SGLs.

    The data pointer is an SGL Data Block descriptor (Base Specification 2.0, section 4.1.2.1): address, length, and a
    last byte of zero for its type. Raises ValueError for an address that is no multiple of 4.
    """
    if address % 4:
        raise ValueError(f"bus address {address:#x} is no multiple of 4")
    entry = read(nsid, lba, blocks, address, nbytes)
    entry["flags"] = spec.FLAGS_PSDT.put(1)
    return entry


def write(nsid: int, lba: Numbers, blocks: Numbers, prp1: Numbers, prp2: Numbers) -> Entries:
    """Write (NVM Command Set Specification 1.0, section 3.2.6): `blocks` from `lba` on, from what the PRPs point at."""
    return _transfer(spec.WRITE, nsid, lba, blocks, (prp1, prp2))


def _queue(qid: int, entries: int) -> int:
    return spec.QUEUE_QID.put(qid) | spec.QUEUE_SIZE.put(entries - 1)


def _entry(opcode: int, **fields: int) -> Entries:
    entry = np.zeros(1, spec.SQE)
    entry["opcode"] = opcode
    for name, value in fields.items():
        entry[name] = value
    return entry


def _transfer(opcode: int, nsid: int, lba: Numbers, blocks: Numbers, prps: tuple[Numbers, Numbers]) -> Entries:
    fewest, most = (blocks, blocks) if isinstance(blocks, int) else (int(blocks.min()), int(blocks.max()))
    if not 1 <= fewest <= most <= MAX_BLOCKS:
        raise ValueError(f"{fewest} to {most} blocks a command are not within 1 to {MAX_BLOCKS}")
    # Eight words of 64 bits an entry: each is set for all commands at once, a few times faster than by named fields.
    count = max(1 if isinstance(values, int) else len(values) for values in (lba, blocks, *prps))
    words = np.zeros((count, spec.SQE_BYTES // 8), np.uint64)
    words[:, 0] = opcode | nsid << 32
    words[:, 3], words[:, 4] = prps
    words[:, 5] = lba
    words[:, 6] = blocks - 1 if isinstance(blocks, int) else blocks - np.uint64(1)
    return words.view(spec.SQE)[:, 0]
