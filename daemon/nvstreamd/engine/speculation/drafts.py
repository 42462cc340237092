"""Which tokens are guessed for a request? What followed in its own text or its user's earlier ones; what must follow.

Guesses change no answer: a token counts only where it equals what the request draws at that place (Leviathan et al.,
2023, without their rejection step: draws depend on seed and position alone). Nobody's text is guessed from another's.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nvstreamd.engine.kv_cache import KvCache
from nvstreamd.engine.pacing import Pacing
from nvstreamd.engine.request import Request
from nvstreamd.engine.scheduler import Work
from nvstreamd.engine.speculation.suffixes import END, Match, Suffixes
from nvstreamd.engine.speculation.width import Guess, widths
from nvstreamd.text import places

log = logging.getLogger(__name__)

# Tokens that are guessed for a request in a pass.
MOST = 16
# Tokens of a text that are looked at between two passes.
INDEXED_A_PASS = 512
# Of a user's earlier texts: two generations of so many tokens, of so many users.
GENERATION, MOST_USERS = 16384, 16
# Agreement that is long; how often guesses are right before any was verified; how fast that is corrected.
LONG = 8
TRUST = {False: 0.4, True: 0.8}
CORRECTION = 0.1
SURE = 0.999


@dataclass(slots=True)
class _Drafted:
    """What is known of one request: an index of its text, and how often guesses for it were right, by agreement.

    `source` says of the guess at hand whether it agreed for long; None where a grammar forced it.
    """

    text: Suffixes
    trust: dict[bool, float]
    source: bool | None = None


class Drafts:
    """Guesses for the requests of one engine. `proposed` and `accepted` count tokens since the start."""

    def __init__(self, kv: KvCache, pacing: Pacing) -> None:
        self.kv = kv
        self.pacing = pacing
        self.proposed = 0
        self.accepted = 0
        self._of: dict[Request, _Drafted] = {}
        self._users: OrderedDict[int, list[Suffixes]] = OrderedDict()

    def draft(self, work: Sequence[Work]) -> list[Work]:
        """The work of a pass, with guesses where they pay."""
        guessed = {number: match for number, item in enumerate(work) if (match := self._try(item)) is not None}
        if not guessed:
            return list(work)
        rows = sum(item.count for item in work)
        wanted = sum(item.samples for item in work)
        found = widths(
            [Guess(len(match.tokens), self._probability(work[number].request)) for number, match in guessed.items()],
            len(work) - len(guessed), lambda more: self.pacing.seconds(rows + more, wanted + more))
        drafts = dict(zip(guessed, found, strict=True))
        return [replace(item, draft=self._with_room(item, guessed[number].tokens[: drafts[number]]))
                if number in drafts else item for number, item in enumerate(work)]

    def verified(self, item: Work, right: int) -> None:
        """Takes note that so many of an item's guesses were right."""
        request = item.request
        self.proposed += len(item.draft)
        self.accepted += right
        request.proposed += len(item.draft)
        request.accepted += right
        known = self._of.get(request)
        if known is None or known.source is None:
            return
        for place in range(min(right + 1, len(item.draft))):
            known.trust[known.source] += CORRECTION * ((place < right) - known.trust[known.source])

    def forget(self, request: Request) -> None:
        """A request has ended: its text is one of its user's."""
        if self._of.pop(request, None) is None:
            return
        texts = self._users.pop(request.uid, None) or [Suffixes()]
        texts[-1].add([*request.tokens[-GENERATION:], END])
        if len(texts[-1].tokens) > GENERATION:
            texts = [texts[-1], Suffixes()]
        self._users[request.uid] = texts
        if len(self._users) > MOST_USERS:
            self._users.popitem(last=False)

    def _try(self, item: Work) -> Match | None:
        """A guess; a request for which guessing fails goes on without."""
        try:
            return self._guess(item)
        except Exception as error:
            log.error("nothing is guessed for a request any more: %s", places(error, with_text=False))
            item.request.speculates = False
            return None

    def _guess(self, item: Work) -> Match | None:
        """What may follow the one token of a request that decodes."""
        request = item.request
        left = min(request.limit - len(request.tokens), request.max_tokens - request.generated) - 1
        if not request.speculates or not item.samples or item.count != 1 or left < 1:
            return None
        known = self._of.setdefault(request, _Drafted(Suffixes(), dict(TRUST)))
        known.text.add(request.tokens[len(known.text.tokens) :])
        known.text.index(INDEXED_A_PASS)
        forced = request.constraint.forced(min(MOST, left)) if request.constraint is not None else ()
        known.source = None
        if forced:
            return Match(forced, 0)
        texts = [known.text, *reversed(self._users.get(request.uid, []))]
        for text in texts[1:]:
            text.index(INDEXED_A_PASS)
        matches = [match for text in texts if (match := text.follow(request.tokens, min(MOST, left)))]
        best = max(matches, key=lambda match: match.agreeing, default=None)
        known.source = None if best is None else best.agreeing >= LONG
        return best

    def _probability(self, request: Request) -> float:
        known = self._of[request]
        return SURE if known.source is None else known.trust[known.source]

    def _with_room(self, item: Work, draft: tuple[int, ...]) -> tuple[int, ...]:
        """As much of a guess as there are pages for that nobody else has."""
        end = item.begin + item.count
        draft = draft[: max(0, self.kv.room(item.request.kept) - end)]
        return draft if draft and self.kv.grow(item.request.kept, end + len(draft)) else ()
