"""What does a row of logits lead to? A token, what may be shown of it, and perhaps the end of its request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from nvstreamd.engine import sampling
from nvstreamd.engine.answers import ended_message, tokens_message
from nvstreamd.engine.channel import Channel
from nvstreamd.engine.output import Piece
from nvstreamd.engine.request import Likelihood, Request
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.engine.usage import Reason, usage_of
from nvstreamd.errors import NvstreamError, unexpected
from nvstreamd.text import places

log = logging.getLogger(__name__)


def verdict_on(request: Request) -> tuple[Reason, str | None] | None:
    """Why a request has come to its end (and by which stop string), None while it goes on."""
    if request.stopped_by is not None:
        return Reason.STOP, request.stopped_by
    if request.constraint is not None and request.constraint.complete:
        return Reason.END, None
    if request.generated >= request.max_tokens:
        return Reason.LENGTH, None
    if len(request.tokens) >= request.limit:
        return Reason.CONTEXT, None
    return None


class Delivery:
    """Makes tokens and sends them. `forget` takes a request that has ended out of service."""

    def __init__(self, channel: Channel, tokenizer: Tokenizer, forget: Callable[[Request], None]) -> None:
        self.channel = channel
        self.tokenizer = tokenizer
        self.tokens = 0
        self._forget = forget

    def sample(self, request: Request, row: np.ndarray) -> None:
        """Draws the next token of a request from its row of logits [vocabulary] float32, and sends what it shows."""
        self._try(request, lambda: self._sample(request, row))

    def begin(self, request: Request) -> bool:
        """True when there is anything left to do for a request; one that was replayed to its end is ended here."""
        verdict = verdict_on(request)
        if verdict is not None:
            self._try(request, lambda: self._end(request, *verdict))
        return verdict is None

    def fail(self, request: Request, error: NvstreamError) -> None:
        """Ends a request by an error."""
        self._forget(request)
        self.channel.fail(error, request.id)

    def _try(self, request: Request, act: Callable[[], None]) -> None:
        """Does something for one request, whose failure is that request's alone."""
        try:
            act()
        except OSError:
            # The daemon is gone.
            raise
        except Exception as error:
            ours = unexpected(error, "generating the next token")
            if ours is not error:
                log.error("a request failed: %s", places(error, with_text=False))
            self.fail(request, ours)

    def _sample(self, request: Request, row: np.ndarray) -> None:
        allowed = request.constraint.allowed() if request.constraint is not None else None
        token = sampling.choose(row, request.tokens, request.sampling, allowed, request.prompt_length)
        request.first_token = request.first_token or time.monotonic()
        detail = self._logprob(request, row, token)
        self._accept(request, token, detail)

    def _logprob(self, request: Request, row: np.ndarray, token: int) -> Likelihood | None:
        if request.logprobs is None:
            return None
        own, top = sampling.logprobs(row, token, request.logprobs)
        return Likelihood(token, own, top)

    def _accept(self, request: Request, token: int, detail: Likelihood | None) -> None:
        """Appends a token, shows what may be shown, and ends the request when this was its last."""
        self.tokens += 1
        if not request.ignore_eos and token in self.tokenizer.eog_ids:
            self._end(request, Reason.END)
            return
        request.tokens.append(token)
        request.details.append(detail) if detail is not None else None
        if request.constraint is not None:
            request.constraint.advance([token])
        piece = request.output.push(token)
        if piece is not None:
            self._show(request, piece)
            request.stopped_by = piece.stop
        verdict = verdict_on(request)
        if verdict is not None:
            self._end(request, *verdict)

    def _show(self, request: Request, piece: Piece) -> None:
        details = [request.details.popleft() for _ in piece.tokens] if request.details else []
        self.channel.send(tokens_message(request, piece, details))

    def _end(self, request: Request, reason: Reason, stop: str | None = None) -> None:
        rest = request.output.flush()
        if rest is not None:
            self._show(request, rest)
        self._forget(request)
        self.channel.send(ended_message(request, reason, stop, usage_of(request)))
