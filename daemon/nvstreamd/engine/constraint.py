"""Which tokens keep the text within a JSON schema? Through llguidance.

A schema comes from a user and may be made to hurt: it is compiled first where it can be killed (`check`, by a worker of
the engine), then here; every later step is bounded by the limits below.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Final

import llguidance
import numpy as np
import numpy.typing as npt

from nvstreamd.engine.json_schema import grammar_schema
from nvstreamd.engine.tokenizer import Tokenizer
from nvstreamd.errors import InvalidRequest

LONGEST_SCHEMA: Final = 1 << 20
CHECK_CPU_SECONDS: Final = 3
CHECK_SECONDS: Final = 30.0
CHECK_MEMORY: Final = 1 << 30
# A state of the lexer takes 1 to 2 kB, and a request keeps its own: at most some 50 MB.
LIMITS: Final[dict[str, Any]] = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000,
                 "max_items_in_row": 2000, "max_lexer_states": 30_000, "max_grammar_size": 200_000,
                 "verbose_errors": False}
# Between two parts of the JSON: as much as indentation needs. Without a bound a small model never leaves it.
WHITESPACE: Final = r"[\x20\x0A\x0D\x09]{1,64}"
FIELD: Final = "options.json_schema"
# Characters of schemas in which forced text is looked for, between two passes: all of it is found at once.
LONGEST_FORCING: Final = 1 << 14


class _Vocabulary:
    """The facts that llguidance wants to know of a tokenizer."""

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
        self._making = Lock()

    def json_schema(self, schema: str) -> Constraint:
        """The constraint of a JSON schema that nobody has checked. Raises InvalidRequest saying what is wrong."""
        return self.compile(check(schema))

    def compile(self, schema: str) -> Constraint:
        """The constraint of a JSON schema that `check` returned. Raises InvalidRequest saying what is wrong."""
        if not self._tokenizer.eog_ids:
            raise InvalidRequest("the model has no end-of-generation token", "a schema needs one", field=FIELD)
        with self._making:
            if self._llguidance is None:
                wrapped = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer))
                self._llguidance = llguidance.LLTokenizer(wrapped, eos_token=sorted(self._tokenizer.eog_ids))
        try:
            # Options can be given to an object only, and `true` means the same as no condition.
            text = "{}" if schema.strip() == "true" else schema
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": WHITESPACE})
        except ValueError as error:
            raise _refused(str(error)) from error
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(self._llguidance, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(problem_of(matcher))
        constraint = Constraint(matcher, self._tokenizer.vocab_size, forces=len(schema) <= LONGEST_FORCING)
        constraint.allowed()  # a schema that no text meets is found here, not in the middle of a pass
        return constraint


def check(schema: str) -> str:
    """The schema as it is to be compiled (`json_schema`), once that has succeeded in a process with limits.

    Raises InvalidRequest.
    """
    if len(schema) > LONGEST_SCHEMA:
        raise InvalidRequest(f"the schema has {len(schema)} characters", f"at most {LONGEST_SCHEMA} are accepted",
                             field=FIELD)
    schema = grammar_schema(schema)
    try:
        done = subprocess.run(_check_command(), input=schema.encode(), capture_output=True, env={}, cwd="/",
                              timeout=CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _too_complex() from error
    if done.stdout:
        raise _refused(done.stdout.decode("utf-8", "replace"))
    if done.returncode:
        raise _too_complex()
    return schema


def _too_complex() -> InvalidRequest:
    return InvalidRequest(
        f"compiling the JSON schema takes more than {CHECK_CPU_SECONDS} s or {CHECK_MEMORY >> 20} MiB",
        "use fewer patterns in allOf, shorter lists and ranges", field=FIELD)


def _refused(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the JSON schema is not usable: {problem}", "see json-schema.org", field=FIELD)


def _check_command() -> list[str]:
    site = Path(llguidance.__file__).parent.parent
    script = Path(__file__).with_name("constraint_check.py")
    return [sys.executable, "-I", "-S", str(script), str(site), str(CHECK_CPU_SECONDS), str(CHECK_MEMORY)]


def problem_of(matcher: Any) -> str:
    """The reason why a matcher gave up, without the dump of its state."""
    return str(matcher.get_error()).split("\n<", 1)[0][:500]


class Constraint:
    """The state of one text under a schema."""

    def __init__(self, matcher: Any, vocabulary: int, *, forces: bool) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._forced: deque[int] = deque()
        self._forces = forces

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocabulary] bool: the tokens that may come next. Raises InvalidRequest when the matcher gave up."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise InvalidRequest(f"the JSON schema allows no text, or is too complex: {problem_of(self._matcher)}",
                                 "simplify it", field=FIELD)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocabulary].astype(bool)
        return np.pad(bits, (0, self._vocabulary - len(bits)))

    def forced(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that come next because no other text may; none where there is a choice.

        All of such a text is found at once, and kept; of a long schema never: it is as long, and finding it would hold
        up everybody.
        """
        if self._forces and not self._forced:
            self._forced.extend(self._matcher.compute_ff_tokens())
        return tuple(islice(self._forced, most))

    def advance(self, tokens: Sequence[int]) -> None:
        """Takes tokens that were chosen. What the schema forbids, or finds too hard, is told by `allowed`."""
        self._matcher.consume_tokens(list(tokens))
        for token in tokens:
            if self._forced and self._forced.popleft() != token:
                self._forced.clear()

    @property
    def complete(self) -> bool:
        """True when nothing may follow. A matcher that gave up is not complete: the text is not valid."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()
