"""How does a SentencePiece ('llama') vocabulary turn plain text into ids? Best-scored pair first.

The library's BPE cannot do this exactly: it ranks pairs, and two pairs never share a rank, while here equal
scores are decided by position; and any two neighbours whose text is a token may merge.
Reference of the behaviour: SentencePiece, src/bpe_model.cc; llama.cpp departs from it where docs/tokenizer.md says.

A merge only ever joins characters that stand side by side inside some token. So the text is first cut
wherever no token has the two characters together: the parts are independent, and equal parts give equal ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

from nvstreamd.engine.tokenizer.errors import TokenizerError
from nvstreamd.engine.tokenizer.fields import PREFIX
from nvstreamd.engine.tokenizer.pieces import SPACE_MARK, byte_token
from nvstreamd.engine.tokenizer.vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_MEMO_LIMIT = 1 << 16


class Spm:
    """Encodes plain text (no special tokens in it) with one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, scores: Sequence[float]) -> None:
        self._ids = {text: token for text, token in vocabulary.ids.items() if _is_word(vocabulary, token)}
        self._unused = frozenset(text for text, token in self._ids.items() if vocabulary.attributes[token] & UNUSED)
        self._scores = scores
        self._neighbours = {text[i : i + 2] for text in self._ids for i in range(len(text) - 1)}
        self._bytes = [_byte_id(byte, vocabulary.ids) for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text, whose spaces are marked here.

        Raises:
            TokenizerError: a character is no token and neither are its bytes.
        """
        memo: dict[str, list[int]] = {}
        ids: list[int] = []
        for part in self._parts(text.replace(" ", SPACE_MARK)):
            known = memo.get(part)
            if known is None:
                known = self._encode_part(part)
                if len(memo) < _MEMO_LIMIT:
                    memo[part] = known
            ids.extend(known)
        return ids

    def _parts(self, text: str) -> Iterator[str]:
        neighbours = self._neighbours
        start = 0
        for i in range(1, len(text)):
            if text[i - 1 : i + 1] not in neighbours:
                yield text[start:i]
                start = i
        if text:
            yield text[start:]

    def _encode_part(self, part: str) -> list[int]:
        ids: list[int] = []
        for symbol in _merge(part, self._ids, self._scores, self._unused):
            token = self._ids.get(symbol)
            ids.extend(self._byte_ids(symbol) if token is None else (token,))
        return ids

    def _byte_ids(self, symbol: str) -> list[int]:
        found = [token for byte in symbol.encode() if (token := self._bytes[byte]) is not None]
        if len(found) < len(symbol.encode()):
            raise TokenizerError(
                PREFIX + "tokens",
                f"has no token for {symbol!r} nor for its bytes",
                "leave that character out",
            )
        return found


def _is_word(vocabulary: Vocabulary, token: int) -> bool:
    """True when characters may merge into this token.

    As in SentencePiece. In llama.cpp they may into any, so that a user's text can spell a control token.
    """
    bits = vocabulary.attributes[token]
    return bool(bits & (NORMAL | USER_DEFINED | UNUSED)) and not bits & (CONTROL | UNKNOWN)


def _byte_id(byte: int, ids: Mapping[str, int]) -> int | None:
    named = ids.get(byte_token(byte))
    return named if named is not None or byte > 0x7F else ids.get(chr(byte))


def _merge(part: str, ids: Mapping[str, int], scores: Sequence[float], unused: frozenset[str]) -> list[str]:
    """The symbols left when no two neighbours make a token: highest score first, then leftmost.

    Tokens in `unused` are steps on the way to others; of such a one that is left its two parts are taken.
    """
    symbols: list[str] = list(part)
    before = list(range(-1, len(symbols) - 1))
    after = [*range(1, len(symbols)), -1]
    queue: list[tuple[float, int, int, int]] = []
    halves: dict[str, tuple[str, str]] = {}

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (token := ids.get(symbols[left] + symbols[right])) is not None:
            size = len(symbols[left]) + len(symbols[right])
            heapq.heappush(queue, (-scores[token], left, right, size))

    for right in range(1, len(symbols)):
        offer(right - 1, right)
    while queue:
        _, left, right, size = heapq.heappop(queue)
        # Outdated when either was merged away, or grew, since the pair was offered.
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != size:
            continue
        if unused and symbols[left] + symbols[right] in unused:
            halves[symbols[left] + symbols[right]] = (symbols[left], symbols[right])
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    left_over = [symbol for symbol in symbols if symbol]
    return left_over if halves.keys().isdisjoint(left_over) else _without_unused(left_over, halves)


def _without_unused(symbols: Sequence[str], halves: Mapping[str, tuple[str, str]]) -> list[str]:
    result, waiting = [], list(reversed(symbols))
    while waiting:
        symbol = waiting.pop()
        if symbol in halves:
            waiting.extend(reversed(halves[symbol]))
        else:
            result.append(symbol)
    return result
