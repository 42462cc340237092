"""What need not be prepared again? Answers and refusals of costly calls, a user's own, bounded."""

from __future__ import annotations

from collections import OrderedDict

from nvstreamd.engine.preparation.questions import Ask
from nvstreamd.wire.engine_pb2 import Failure, FromEngine

MOST_BYTES = 16 << 20
MOST_BYTES_OF_A_USER = 2 << 20
MOST_ANSWERS_OF_A_USER = 64
OVERHEAD = 256


class Remembered:
    """Answers by uid and question, those used last. Nobody finds another's: it would tell what they ask."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        self._of: OrderedDict[int, OrderedDict[bytes, bytes]] = OrderedDict()
        self._bytes = 0

    def find(self, uid: int, ask: Ask) -> FromEngine | None:
        """The answer that this user had to the same question."""
        own, key = self._of.get(uid), ask.digest
        answer = None if own is None else own.get(key)
        if own is None or answer is None:
            return None
        own.move_to_end(key)
        self._of.move_to_end(uid)
        return FromEngine.FromString(answer)

    def keep(self, uid: int, ask: Ask, answer: FromEngine) -> None:
        """Keeps an answer, in the place of those that were not used for longest; one that is too large is not kept."""
        packed = answer.SerializeToString()
        if len(packed) + OVERHEAD > MOST_BYTES_OF_A_USER:
            return
        own = self._of.setdefault(uid, OrderedDict())
        self._of.move_to_end(uid)
        key = ask.digest
        if key not in own:
            own[key] = packed
            self._bytes += len(packed) + OVERHEAD
        while len(own) > MOST_ANSWERS_OF_A_USER or sum(map(len, own.values())) > MOST_BYTES_OF_A_USER:
            self._drop(own)
        while self._bytes > self.most:
            stalest, answers = next(iter(self._of.items()))
            self._drop(answers)
            if not answers:
                del self._of[stalest]

    def _drop(self, own: OrderedDict[bytes, bytes]) -> None:
        self._bytes -= len(own.popitem(last=False)[1]) + OVERHEAD


def is_refusal(answer: FromEngine) -> bool:
    """True when an answer says no to the question itself, and would again."""
    return answer.HasField("failure") and _lasts(answer.failure)


def _lasts(failure: Failure) -> bool:
    return failure.status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
