"""What does a hostile GGUF's metadata really hold? Typed, bounded reads of `tokenizer.*` keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice

from nvstreamd.engine.tokenizer.errors import TokenizerError

PREFIX = "tokenizer.ggml."
MAX_TOKENS = 1 << 20
MAX_MERGES = 1 << 21
MAX_TEXT = 1 << 16
MAX_TOTAL_TEXT = 1 << 26
RECONVERT = "the file is damaged or was converted wrongly: download or convert it again"


def optional_str(metadata: Mapping[str, object], key: str) -> str | None:
    """A string of at most 64 KiB, or None when the key is absent.

    Raises:
        TokenizerError: the value is something else.
    """
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise TokenizerError(key, f"must be a short string, not {type(value).__name__}", RECONVERT)
    return value


def optional_bool(metadata: Mapping[str, object], key: str) -> bool | None:
    """A boolean, or None when the key is absent.

    Raises:
        TokenizerError: the value is something else.
    """
    value = metadata.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise TokenizerError(key, f"must be a boolean, not {type(value).__name__}", RECONVERT)


def optional_id(metadata: Mapping[str, object], key: str, size: int) -> int | None:
    """A token id below `size`, or None when the key is absent.

    Raises:
        TokenizerError: not an integer, or no such token.
    """
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise TokenizerError(key, f"must be an integer, not {type(value).__name__}", RECONVERT)
    if not 0 <= value < size:
        raise TokenizerError(key, f"is {value}, but the vocabulary has {size} tokens", RECONVERT)
    return value


def _array(metadata: Mapping[str, object], key: str, limit: int) -> Sequence[object] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise TokenizerError(key, f"must be an array, not {type(value).__name__}", RECONVERT)
    if len(value) > limit:
        raise TokenizerError(key, f"has {len(value)} entries, more than {limit}", RECONVERT)
    return value


def strings(metadata: Mapping[str, object], key: str, limit: int) -> list[str]:
    """An array of strings, bounded in number, in length and in sum.

    Raises:
        TokenizerError: missing, of another type, or too large.
    """
    values = _array(metadata, key, limit)
    if values is None:
        raise TokenizerError(key, "is missing", RECONVERT)
    texts: list[str] = []
    total = 0
    for index, value in enumerate(values):
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise TokenizerError(key, f"entry {index} is not a short string", RECONVERT)
        total += len(value)
        texts.append(value)
    if total > MAX_TOTAL_TEXT:
        raise TokenizerError(key, f"holds {total} characters, more than {MAX_TOTAL_TEXT}", RECONVERT)
    return texts


def token_types(metadata: Mapping[str, object], size: int) -> list[int] | None:
    """The first `size` entries of the token types, or None when the file has none.

    Raises:
        TokenizerError: not integers, or fewer than tokens.
    """
    key = PREFIX + "token_type"
    types: list[int] = []
    for index, value in enumerate(_per_token(metadata, key, size) or ()):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TokenizerError(key, f"entry {index} is not an integer", RECONVERT)
        types.append(value)
    return types if key in metadata else None


def scores(metadata: Mapping[str, object], size: int) -> list[float]:
    """The first `size` scores; zeros when the file has none, as llama.cpp takes them.

    Raises:
        TokenizerError: not finite numbers, or fewer than tokens.
    """
    key = PREFIX + "scores"
    found: list[float] = []
    for index, value in enumerate(_per_token(metadata, key, size) or ()):
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise TokenizerError(key, f"entry {index} is not a finite number", RECONVERT)
        found.append(float(value))
    return found if key in metadata else [0.0] * size


def _per_token(metadata: Mapping[str, object], key: str, size: int) -> list[object] | None:
    values = _array(metadata, key, MAX_TOKENS)
    if values is None:
        return None
    if len(values) < size:
        raise TokenizerError(key, f"has {len(values)} entries for {size} tokens", RECONVERT)
    return list(islice(values, size))
