"""Which registers, bits, opcodes and queue entries does an NVMe controller have?

Sections are those of the NVM Express Base Specification 2.0 where nothing else is named. Everything is little-endian;
what the specification counts from zero ("0's based") is marked, because it is the classical mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Entries = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Field:
    """`bits` bits of a register or of a command's double word, from bit `shift` on."""

    shift: int
    bits: int

    def get(self, word: int) -> int:
        """The field's value in `word`."""
        return word >> self.shift & (1 << self.bits) - 1

    def put(self, value: int) -> int:
        """A word with this field set and all else zero. Raises ValueError when `value` does not fit."""
        if not 0 <= value < 1 << self.bits:
            raise ValueError(f"{value} does not fit into {self.bits} bits at bit {self.shift}")
        return value << self.shift


def dtype_of(nbytes: int, fields: dict[str, tuple[str, int]]) -> np.dtype[np.void]:
    """A structure of `nbytes` with named fields, {name: (numpy's format, offset)}; bytes between them are ignored."""
    formats = [kind for kind, _ in fields.values()]
    offsets = [offset for _, offset in fields.values()]
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": nbytes})


# Registers ("properties"), section 3.1.3; byte offsets in BAR 0.
CAP = 0x00  # 3.1.3.1, 64 bits
VS = 0x08  # 3.1.3.2
INTMS = 0x0C  # 3.1.3.3
INTMC = 0x10  # 3.1.3.4
CC = 0x14  # 3.1.3.5
CSTS = 0x1C  # 3.1.3.6
NSSR = 0x20  # 3.1.3.7
AQA = 0x24  # 3.1.3.8
ASQ = 0x28  # 3.1.3.9, 64 bits
ACQ = 0x30  # 3.1.3.10, 64 bits
DOORBELLS = 0x1000  # NVMe over PCIe Transport Specification, SQyTDBL and CQyHDBL

# CAP, section 3.1.3.1.
CAP_MQES = Field(0, 16)  # largest queue, 0's based
CAP_TO = Field(24, 8)  # worst case of CSTS.RDY following CC.EN, in units of 500 ms
CAP_DSTRD = Field(32, 4)  # doorbells are 4 << DSTRD bytes apart
CAP_CSS_NVM = Field(37, 1)  # the NVM Command Set is supported
CAP_MPSMIN = Field(48, 4)  # the smallest memory page is 4096 << MPSMIN bytes

# CC, section 3.1.3.5.
CC_EN = Field(0, 1)
CC_CSS = Field(4, 3)  # 0: the NVM Command Set
CC_MPS = Field(7, 4)  # memory page is 4096 << MPS bytes
CC_AMS = Field(11, 3)  # 0: round robin
CC_SHN = Field(14, 2)
CC_IOSQES = Field(16, 4)  # a submission queue entry is 1 << IOSQES bytes
CC_IOCQES = Field(20, 4)  # a completion queue entry is 1 << IOCQES bytes
SHN_NORMAL = 1

# CSTS, section 3.1.3.6.
CSTS_RDY = Field(0, 1)
CSTS_CFS = Field(1, 1)
CSTS_SHST = Field(2, 2)
SHST_COMPLETE = 2
ALL_ONES = 0xFFFFFFFF  # what PCIe answers for a function that is not there; no valid CSTS looks like this

# AQA, section 3.1.3.8; sizes 0's based.
AQA_ASQS = Field(0, 12)
AQA_ACQS = Field(16, 12)

# Admin commands, section 5.
DELETE_IO_SQ = 0x00  # 5.7
CREATE_IO_SQ = 0x01  # 5.5
GET_LOG_PAGE = 0x02  # 5.16
DELETE_IO_CQ = 0x04  # 5.6
CREATE_IO_CQ = 0x05  # 5.4
IDENTIFY = 0x06  # 5.17
ABORT = 0x08  # 5.1
SET_FEATURES = 0x09  # 5.27
ASYNC_EVENT_REQUEST = 0x0C  # 5.2
# I/O commands: Flush of section 7.1, Write and Read of the NVM Command Set Specification 1.0, sections 3.2.6 and 3.2.4.
FLUSH = 0x00
WRITE = 0x01
READ = 0x02

CNS_NAMESPACE = 0x00
CNS_CONTROLLER = 0x01
CNS_ACTIVE_NAMESPACES = 0x02
LOG_ERROR = 0x01
LOG_SMART = 0x02
FEATURE_NUMBER_OF_QUEUES = 0x07
EVERY_NAMESPACE = 0xFFFFFFFF

# Double words 10 to 12 of commands, in the section of their command.
QUEUE_QID = Field(0, 16)
QUEUE_SIZE = Field(16, 16)  # 0's based
QUEUE_PC = Field(0, 1)  # physically contiguous
CQ_IEN = Field(1, 1)
CQ_IV = Field(16, 16)
SQ_CQID = Field(16, 16)
ABORT_SQID = Field(0, 16)
ABORT_CID = Field(16, 16)
ABORT_FAILED = Field(0, 1)  # double word 0 of the completion: 1 when the command was not aborted
FEATURE_FID = Field(0, 8)
QUEUES_NSQ = Field(0, 16)  # 5.27.1.5, wanted and granted, 0's based
QUEUES_NCQ = Field(16, 16)
LOG_LID = Field(0, 8)
LOG_NUMDL = Field(16, 16)  # double words, 0's based
EVENT_TYPE = Field(0, 3)  # 5.2, double word 0 of the completion
EVENT_INFORMATION = Field(8, 8)
EVENT_LOG = Field(16, 8)
RW_NLB = Field(0, 16)  # logical blocks, 0's based

# The identifier FFFFh should not be used: the Error Information log names a command it cannot tell so (3.3.3.1).
CIDS = 0xFFFF
SQE_BYTES = 64
CQE_BYTES = 16

# Submission Queue Entry, section 3.3.3.1, with PRPs as data pointer.
SQE = dtype_of(SQE_BYTES, {
    "opcode": ("u1", 0), "flags": ("u1", 1), "cid": ("<u2", 2), "nsid": ("<u4", 4), "cdw2": ("<u4", 8),
    "cdw3": ("<u4", 12), "mptr": ("<u8", 16), "prp1": ("<u8", 24), "prp2": ("<u8", 32), "cdw10": ("<u4", 40),
    "cdw11": ("<u4", 44), "cdw12": ("<u4", 48), "cdw13": ("<u4", 52), "cdw14": ("<u4", 56), "cdw15": ("<u4", 60),
})

# Byte 1 of it, bits 7:6 (PSDT): 1 when the data pointer is an SGL descriptor.
FLAGS_PSDT = Field(6, 2)

# Completion Queue Entry, section 3.3.3.2: as four double words, of which these fields matter.
CQE_CID = Field(0, 16)  # double word 3
CQE_PHASE = Field(16, 1)
CQE_STATUS = Field(17, 15)
# The Status Field, section 3.3.3.2.1, without the phase.
STATUS_SC = Field(0, 8)
STATUS_SCT = Field(8, 3)
STATUS_DNR = Field(14, 1)  # do not retry

# Identify Controller, section 5.17.2.1.
IDENTIFY_CONTROLLER = dtype_of(4096, {
    "sn": ("S20", 4), "mn": ("S40", 24), "fr": ("S8", 64), "mdts": ("u1", 77), "ver": ("<u4", 80),
    "rtd3e": ("<u4", 88), "acl": ("u1", 258), "aerl": ("u1", 259), "elpe": ("u1", 262), "sqes": ("u1", 512),
    "cqes": ("u1", 513), "nn": ("<u4", 516), "vwc": ("u1", 525), "sgls": ("<u4", 536),
})
SGLS_SUPPORT = Field(0, 2)  # 0: none; 1: of any alignment; 2: of whole double words
ENTRY_SIZE_MIN = Field(0, 4)  # of sqes and cqes: required, 1 << n bytes
ENTRY_SIZE_MAX = Field(4, 4)
VWC_PRESENT = Field(0, 1)  # a volatile write cache

# Identify Namespace, NVM Command Set Specification 1.0, section 4.1.5.1.
IDENTIFY_NAMESPACE = dtype_of(4096, {
    "nsze": ("<u8", 0), "ncap": ("<u8", 8), "nlbaf": ("u1", 25), "flbas": ("u1", 26), "dps": ("u1", 29),
    "nguid": ("V16", 104), "eui64": ("V8", 120), "lbaf": ("(64,)<u4", 128),
})
FLBAS_LOW = Field(0, 4)
FLBAS_EXTENDED = Field(4, 1)  # metadata is interleaved with the data
FLBAS_HIGH = Field(5, 2)
DPS_TYPE = Field(0, 3)
LBAF_MS = Field(0, 16)  # metadata bytes a block
LBAF_LBADS = Field(16, 8)  # a block is 1 << LBADS bytes, at least 9

# SMART / Health Information, section 5.16.1.3; counters of 16 bytes, of which the lower 8 are read.
SMART_BYTES = 512
SMART = dtype_of(SMART_BYTES, {
    "critical_warning": ("u1", 0), "temperature": ("<u2", 1), "spare": ("u1", 3), "spare_threshold": ("u1", 4),
    "used": ("u1", 5), "units_read": ("<u8", 32), "units_written": ("<u8", 48), "power_cycles": ("<u8", 112),
    "power_on_hours": ("<u8", 128), "unsafe_shutdowns": ("<u8", 144), "media_errors": ("<u8", 160),
    "error_entries": ("<u8", 176),
})
CRITICAL_WARNINGS = (
    "spare capacity below its threshold", "temperature outside its thresholds", "reliability degraded",
    "media read-only", "volatile memory backup failed", "persistent memory region unreliable",
)

# Error Information, section 5.16.1.2: entries, newest first.
ERROR_BYTES = 64
ERROR = dtype_of(ERROR_BYTES, {
    "count": ("<u8", 0), "sqid": ("<u2", 8), "cid": ("<u2", 10), "status": ("<u2", 12), "lba": ("<u8", 16),
    "nsid": ("<u4", 24),
})
ERROR_STATUS = Field(1, 15)


def doorbell(qid: int, stride: int, *, completion: bool) -> int:
    """The offset of a queue's doorbell: SQ y tail, CQ y head (NVMe over PCIe Transport Specification).

    `stride` is CAP.DSTRD.
    """
    return DOORBELLS + (2 * qid + completion) * (4 << stride)
