"""Which tokens keep the text within a JSON schema? Through llguidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt

from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.errors import InvalidRequest

LONGEST_SCHEMA = 1 << 20


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id is not None else min(tokenizer.eog_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token, special=True) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = [
            token for token in range(tokenizer.vocab_size) if not tokenizer.token_bytes(token)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, add_special=False, parse_special=False)


class Constraints:
    """Compiles schemas for one tokenizer; its tables are made once, when the first schema comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._llguidance: Any = None

    def json_schema(self, schema: str) -> Constraint:
        """The constraint of a JSON schema. Raises InvalidRequest saying what is wrong with it."""
        if len(schema) > LONGEST_SCHEMA:
            raise InvalidRequest(f"the schema has {len(schema)} characters", f"at most {LONGEST_SCHEMA} are accepted",
                                 field="options.json_schema")
        if not self._tokenizer.eog_ids:
            raise InvalidRequest("the model has no end-of-generation token", "a schema needs one",
                                 field="options.json_schema")
        if self._llguidance is None:
            wrapped = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer))
            self._llguidance = llguidance.LLTokenizer(wrapped, eos_token=sorted(self._tokenizer.eog_ids))
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        except ValueError as error:
            raise self._refused(str(error)) from error
        matcher = llguidance.LLMatcher(self._llguidance, grammar, log_level=0)
        if matcher.is_error():
            raise self._refused(matcher.get_error())
        return Constraint(matcher, self._tokenizer.vocab_size)

    def _refused(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"the JSON schema is not usable: {problem[:500]}", "see json-schema.org",
                              field="options.json_schema")


class Constraint:
    """The state of one text under a schema."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocabulary] bool: the tokens that may come next. Raises InvalidRequest when the matcher gave up."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise InvalidRequest(f"the JSON schema became too complex: {self._matcher.get_error()[:500]}",
                                 "simplify it", field="options.json_schema")
        bits = np.unpackbits(packed, bitorder="little")[: self._vocabulary].astype(bool)
        return np.pad(bits, (0, self._vocabulary - len(bits)))

    def advance(self, tokens: Sequence[int]) -> None:
        """Takes tokens that were chosen."""
        self._matcher.consume_tokens(list(tokens))

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())
