"""What does the scripted NVMe controller answer to each command? Numbers of its own, none shared with the driver."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from support.nvme_bus import PAGE, Bus, walk_prps, walk_sgl

OK, INVALID_OPCODE, INVALID_FIELD, DATA_TRANSFER_ERROR, ABORT_REQUESTED = 0x00, 0x01, 0x02, 0x04, 0x07
INVALID_NAMESPACE, SEQUENCE_ERROR, OUT_OF_RANGE = 0x0B, 0x0C, 0x80
NO_SUCH_CQ, INVALID_QID, INVALID_SIZE, TOO_MANY_EVENTS = 0x100, 0x101, 0x102, 0x105
INVALID_VECTOR, INVALID_LOG, INVALID_DELETION = 0x108, 0x109, 0x10C


class Status(Exception):
    """A command ends with this status: SC in the lower 8 bits, SCT above."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(hex(status))


@dataclass(frozen=True, slots=True)
class Command:
    """A fetched submission queue entry."""

    qid: int
    opcode: int
    flags: int
    cid: int
    nsid: int
    prp1: int
    prp2: int
    cdw: dict[int, int]

    @classmethod
    def unpack(cls, qid: int, entry: bytes) -> Command:
        """From 64 bytes."""
        opcode, flags, cid, nsid, _, _, prp1, prp2, *rest = struct.unpack("<BBHIQQQQ6I", entry)
        return cls(qid, opcode, flags, cid, nsid, prp1, prp2, dict(enumerate(rest, 10)))


@dataclass(slots=True)
class Image:
    """A namespace: its bytes and how many make a block."""

    data: bytearray
    block: int = 512

    @property
    def blocks(self) -> int:
        """Its size in blocks."""
        return len(self.data) // self.block


@dataclass(frozen=True, slots=True)
class Model:
    """What kind of controller this is. As the registers and structures have it: `mqes`, `aerl` etc. are 0's based."""

    mqes: int = 1023
    timeout: int = 0
    dstrd: int = 0
    css: int = 1
    mpsmin: int = 0
    mdts: int = 5
    sqes: int = 0x66
    cqes: int = 0x44
    aerl: int = 3
    elpe: int = 63
    rtd3e: int = 0
    queues: int = 8
    vectors: int = 4
    sgls: int = 0
    serial: str = "S1"


@dataclass(slots=True)
class Firmware:
    """Carries out commands on memory and images. `patches` overwrite what Identify says: {(CNS, NSID): {at: bytes}}."""

    model: Model
    images: dict[int, Image]
    bus: Bus
    violations: list[str]
    smart: bytearray = field(default_factory=lambda: bytearray(512))
    errors: list[bytes] = field(default_factory=list)
    patches: dict[tuple[int, int], dict[int, bytes]] = field(default_factory=dict)

    def io(self, command: Command) -> int:
        """Flush, Write, Read."""
        image = self.images.get(command.nsid)
        if image is None:
            raise Status(INVALID_NAMESPACE)
        if command.opcode == 0x00:
            return 0
        if command.opcode not in (0x01, 0x02):
            raise Status(INVALID_OPCODE)
        first, count = command.cdw[10] | command.cdw[11] << 32, (command.cdw[12] & 0xFFFF) + 1
        nbytes, at = count * image.block, first * image.block
        if self.model.mdts and nbytes > PAGE << self.model.mdts:
            raise Status(INVALID_FIELD)
        if first + count > image.blocks:
            raise Status(OUT_OF_RANGE)
        for address, length in self._stretches(command, nbytes):
            if command.opcode == 0x02:
                self.bus.write(address, bytes(image.data[at : at + length]))
            else:
                image.data[at : at + length] = self.bus.read(address, length)
            at += length
        return 0

    def _stretches(self, command: Command, nbytes: int) -> Iterable[tuple[int, int]]:
        if command.flags == 0x40 and self.model.sgls:
            return walk_sgl(command.prp1, command.prp2, nbytes, self.violations)
        if command.flags:
            raise Status(INVALID_FIELD)
        return walk_prps(self.bus, command.prp1, command.prp2, nbytes, self.violations)

    def identify(self, command: Command) -> int:
        """CNS 00h, 01h, 02h."""
        cns = command.cdw[10] & 0xFF
        if cns == 0x01:
            answer = self._controller()
        elif cns == 0x02:
            answer = bytearray(struct.pack(f"<{len(self.images)}I", *sorted(self.images)).ljust(PAGE, b"\0"))
        elif cns == 0x00 and command.nsid in self.images:
            answer = self._namespace(self.images[command.nsid])
        else:
            raise Status(INVALID_NAMESPACE if cns == 0x00 else INVALID_FIELD)
        for at, patch in self.patches.get((cns, command.nsid), {}).items():
            answer[at : at + len(patch)] = patch
        return self._answer(command, bytes(answer))

    def log_page(self, command: Command) -> int:
        """01h and 02h."""
        log, dwords = command.cdw[10] & 0xFF, (command.cdw[10] >> 16) + 1
        if log == 0x02:
            content = bytes(self.smart)
        elif log == 0x01:
            content = b"".join(self.errors).ljust(64 * (self.model.elpe + 1), b"\0")
        else:
            raise Status(INVALID_LOG)
        return self._answer(command, content[: 4 * dwords])

    def _answer(self, command: Command, data: bytes) -> int:
        done = 0
        for address, length in walk_prps(self.bus, command.prp1, command.prp2, len(data), self.violations):
            self.bus.write(address, data[done : done + length])
            done += length
        return 0

    def _controller(self) -> bytearray:
        answer, model = bytearray(PAGE), self.model
        answer[4:72] = model.serial.encode().ljust(20) + b"Scripted Drive".ljust(40) + b"1.0".ljust(8)
        answer[77] = model.mdts
        struct.pack_into("<III", answer, 80, 0x00020000, 0, model.rtd3e)
        answer[258], answer[259], answer[262] = 3, model.aerl, model.elpe
        answer[512], answer[513] = model.sqes, model.cqes
        struct.pack_into("<I", answer, 516, max(self.images, default=1))
        struct.pack_into("<I", answer, 536, model.sgls)
        return answer

    @staticmethod
    def _namespace(image: Image) -> bytearray:
        answer = bytearray(PAGE)
        struct.pack_into("<QQQ", answer, 0, image.blocks, image.blocks, image.blocks)
        answer[25], answer[26] = 1, 0 if image.block == 512 else 1
        struct.pack_into("<II", answer, 128, 9 << 16, 12 << 16)
        return answer
