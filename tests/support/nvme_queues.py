"""How does the scripted NVMe controller fetch, carry out and complete commands?

Its rings, and the admin commands that are about rings.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from support import nvme_firmware as fw
from support.nvme_bus import PAGE, DmaFault
from support.nvme_firmware import Command, Firmware, Status
from support.nvme_script import Effect, Script


@dataclass(slots=True)
class SubmissionQueue:
    """As the controller knows it; `started` are commands fetched and not completed."""

    base: int
    size: int
    cqid: int
    head: int = 0
    tail: int = 0
    started: set[int] = field(default_factory=set)


@dataclass(slots=True)
class CompletionQueue:
    """As the controller knows it."""

    base: int
    size: int
    head: int = 0
    tail: int = 0
    phase: int = 1


@dataclass(slots=True)
class Queues:
    """All queues of an enabled controller. `fatal` and `gone` are what a command may have made of it."""

    firmware: Firmware
    script: Script
    sqs: dict[int, SubmissionQueue] = field(default_factory=dict)
    cqs: dict[int, CompletionQueue] = field(default_factory=dict)
    events: list[int] = field(default_factory=list)
    granted: int = 0
    fatal: bool = False
    gone: bool = False

    @property
    def io_queues(self) -> int:
        """Submission and completion queues that exist, without the admin ones."""
        return sum(qid != 0 for qid in (*self.sqs, *self.cqs))

    def enable(self, asq: int, acq: int, aqa: int) -> None:
        """The admin queues, as the registers describe them."""
        self.sqs[0] = SubmissionQueue(asq, (aqa & 0xFFF) + 1, 0)
        self.cqs[0] = CompletionQueue(acq, (aqa >> 16) + 1)

    def ring(self, offset: int, value: int) -> None:
        """A doorbell is rung, `offset` bytes behind the first."""
        stride = 4 << self.firmware.model.dstrd
        qid, is_completion = divmod(offset // stride, 2)
        queues: Mapping[int, SubmissionQueue | CompletionQueue] = self.cqs if is_completion else self.sqs
        queue = queues.get(qid)
        if offset % stride or queue is None or value >= queue.size:
            self.firmware.violations.append(f"doorbell at {offset:#x} rung with {value}")
        elif isinstance(queue, CompletionQueue):
            if (value - queue.head) % queue.size > (queue.tail - queue.head) % queue.size:
                self.firmware.violations.append(f"completion queue {qid}: {value} was read before it was written")
            queue.head = value
        else:
            queue.tail = value
            if not qid or not self.script.manual:
                self.process(qid, 1 << 16)

    def process(self, qid: int, count: int) -> None:
        """Fetches and carries out up to `count` commands of a submission queue."""
        queue, ended = self.sqs[qid], []
        while queue.head != queue.tail and count and not self.gone and not self.fatal:
            count -= 1
            command = Command.unpack(qid, self.firmware.bus.read(queue.base + 64 * queue.head, 64))
            queue.head = (queue.head + 1) % queue.size
            if command.cid in queue.started or (command.flags and not (qid and self.firmware.model.sgls)):
                self.firmware.violations.append(f"queue {qid}: command {command.cid:#x} is there already, or has flags")
            queue.started.add(command.cid)
            ended += self._carry_out(command)
        for command, status, dw0 in reversed(ended) if self.script.reverse else ended:
            self.post(queue, qid, command.cid, status, dw0)

    def _carry_out(self, command: Command) -> list[tuple[Command, int, int]]:
        rule = next((rule for rule in self.script.rules
                     if (rule.opcode, rule.admin) == (command.opcode, command.qid == 0)), None)
        effect = None
        if rule is not None:
            self.script.rules.remove(rule)
            effect = rule.effect
            if effect is Effect.FAIL:
                return [(command, rule.status, 0)]
        self.fatal |= effect is Effect.FATAL
        self.gone |= effect is Effect.VANISH
        if effect in (Effect.FATAL, Effect.VANISH):
            return []
        ended = self._answer(command)
        return {Effect.LOSE: [], Effect.DUPLICATE: ended * 2}.get(effect, ended) if effect else ended

    def _answer(self, command: Command) -> list[tuple[Command, int, int]]:
        try:
            if command.qid:
                return [(command, fw.OK, self.firmware.io(command))]
            if command.opcode == 0x0C:
                self._note_event_request(command)
                return []
            return [(command, fw.OK, self._admin(command))]
        except Status as ended:
            return [(command, ended.status, 0)]
        except DmaFault:
            return [(command, fw.DATA_TRANSFER_ERROR, 0)]

    def post(self, queue: SubmissionQueue, qid: int, cid: int, status: int, dw0: int = 0) -> None:
        """Writes a completion into the queue that `queue` completes to."""
        ring = self.cqs[queue.cqid]
        if (ring.tail + 1) % ring.size == ring.head:
            self.firmware.violations.append(f"completion queue {queue.cqid} has no room")
        queue.started.discard(cid)
        entry = struct.pack("<IIHHHH", dw0, 0, queue.head, qid, cid, status << 1 | ring.phase)
        self.firmware.bus.write(ring.base + 16 * ring.tail, entry)
        ring.tail += 1
        if ring.tail == ring.size:
            ring.tail, ring.phase = 0, ring.phase ^ 1

    def _admin(self, command: Command) -> int:
        handlers: dict[int, Callable[[Command], int]] = {
            0x00: self._delete_sq, 0x01: self._create_sq, 0x02: self.firmware.log_page, 0x04: self._delete_cq,
            0x05: self._create_cq, 0x06: self.firmware.identify, 0x08: self._abort, 0x09: self._set_features,
        }
        if command.opcode not in handlers:
            raise Status(fw.INVALID_OPCODE)
        return handlers[command.opcode](command)

    def _note_event_request(self, command: Command) -> None:
        if len(self.events) > self.firmware.model.aerl:
            self.firmware.violations.append(f"more than {len(self.events)} event requests")
            raise Status(fw.TOO_MANY_EVENTS)
        self.events.append(command.cid)

    def _set_features(self, command: Command) -> int:
        if command.cdw[10] & 0xFF != 0x07:
            raise Status(fw.INVALID_FIELD)
        if self.io_queues:
            raise Status(fw.SEQUENCE_ERROR)
        wanted = max(command.cdw[11] & 0xFFFF, command.cdw[11] >> 16) + 1
        self.granted = min(wanted, self.firmware.model.queues)
        return (self.granted - 1) << 16 | (self.granted - 1)

    def _new_queue(self, command: Command, existing: Mapping[int, object]) -> tuple[int, int]:
        qid, size = command.cdw[10] & 0xFFFF, (command.cdw[10] >> 16) + 1
        if not 1 <= qid <= self.granted or qid in existing:
            raise Status(fw.INVALID_QID)
        if not 2 <= size <= self.firmware.model.mqes + 1:
            raise Status(fw.INVALID_SIZE)
        if not command.cdw[11] & 1 or command.prp1 % PAGE:
            self.firmware.violations.append(f"queue {qid} at {command.prp1:#x} is not contiguous or not on a page")
        return qid, size

    def _create_cq(self, command: Command) -> int:
        qid, size = self._new_queue(command, self.cqs)
        if command.cdw[11] >> 16 >= self.firmware.model.vectors:
            raise Status(fw.INVALID_VECTOR)
        self.cqs[qid] = CompletionQueue(command.prp1, size)
        return 0

    def _create_sq(self, command: Command) -> int:
        qid, size = self._new_queue(command, self.sqs)
        if command.cdw[11] >> 16 not in self.cqs or not command.cdw[11] >> 16:
            raise Status(fw.NO_SUCH_CQ)
        self.sqs[qid] = SubmissionQueue(command.prp1, size, command.cdw[11] >> 16)
        return 0

    def _delete_sq(self, command: Command) -> int:
        qid = command.cdw[10] & 0xFFFF
        if not qid or qid not in self.sqs:
            raise Status(fw.INVALID_QID)
        del self.sqs[qid]
        return 0

    def _delete_cq(self, command: Command) -> int:
        qid = command.cdw[10] & 0xFFFF
        if not qid or qid not in self.cqs:
            raise Status(fw.INVALID_QID)
        if any(queue.cqid == qid for queue in self.sqs.values()):
            raise Status(fw.INVALID_DELETION)
        del self.cqs[qid]
        return 0

    def _abort(self, command: Command) -> int:
        qid, cid = command.cdw[10] & 0xFFFF, command.cdw[10] >> 16
        queue = self.sqs.get(qid)
        if queue is None or cid not in queue.started:
            return 1
        self.post(queue, qid, cid, fw.ABORT_REQUESTED)
        return 0
