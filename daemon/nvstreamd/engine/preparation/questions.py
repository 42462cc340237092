"""What is a worker asked, and what does that cost?"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from nvstreamd.wire.engine_pb2 import FromEngine, Prepare

# Bytes of text. As many are tokens in some ten milliseconds.
CHEAP = 1 << 14
MESSAGE_COST = 64
# Of a schema's check, which starts a process. What took longer takes the engine some times as long, every time.
QUICK_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to a worker, packed once: a Prepare without the number of its call. `cost` is compared with CHEAP."""

    packed: bytes
    digest: bytes
    cost: int
    is_text: bool

    @classmethod
    def of_text(cls, packed: bytes, cost: int) -> Ask:
        """What are the ids of a text, or a conversation? `packed` as the daemon's command was: see commands.Written."""
        return cls(packed, sha256(packed).digest(), cost, is_text=True)

    @classmethod
    def of_schema(cls, schema: str, cost: int) -> Ask:
        """Can a JSON schema be compiled within its limits, and in which form?"""
        packed = Prepare(json_schema=schema).SerializeToString()
        return cls(packed, sha256(packed).digest(), cost, is_text=False)

    def cost_with(self, answer: FromEngine | None) -> int:
        """The cost that is left when the answer is known: none, but that a schema is compiled once more."""
        if answer is None or answer.encoded.compile_seconds > QUICK_SECONDS:
            return self.cost
        return 0
