"""How does a byte-level BPE vocabulary turn plain text into ids? Through the `tokenizers` library.

llama.cpp works on texts and merges whatever the file lists; the library wants every merged text to be a
token. Texts that are none get a virtual id behind the vocabulary, which is replaced afterwards by what
llama.cpp emits for them: the single-character tokens of the text, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InTurn

from nvstreamd.engine.tokenizer import fields
from nvstreamd.engine.tokenizer.digits import cut
from nvstreamd.engine.tokenizer.errors import TokenizerError
from nvstreamd.engine.tokenizer.fields import PREFIX, RECONVERT
from nvstreamd.engine.tokenizer.pieces import SPACE_MARK, byte_alphabet, byte_token
from nvstreamd.engine.tokenizer.pre_tokenizers import Pre
from nvstreamd.engine.tokenizer.vocabulary import Vocabulary

_NEWLINES = re.compile(r"(\n+)")


class Bpe:
    """Encodes plain text (no special tokens in it) with one vocabulary.

    Raises:
        TokenizerError: the merges cannot be used with this vocabulary.
    """

    def __init__(self, metadata: Mapping[str, object], vocabulary: Vocabulary, pre: Pre) -> None:
        merges = _merges(metadata)
        virtual = _virtual(merges, vocabulary.ids, pre)
        ids = {**vocabulary.ids, **{text: len(vocabulary.ids) + i for i, text in enumerate(virtual)}}
        self._first_virtual = len(vocabulary.ids)
        self._expansions = [_expansion(text, vocabulary.ids, pre.space_marks) for text in virtual]
        self._newline_ids = vocabulary.ids if pre.newline_runs else None
        self._digits = pre.digits
        self._library = _build(ids, merges, pre)

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text.

        Raises:
            ValueError: a run of millions of equal characters is too long for this model's expressions.
        """
        if self._newline_ids is None:
            return self._encode(text)
        ids: list[int] = []
        for part in _NEWLINES.split(text):
            whole = self._newline_ids.get(part) if part.startswith("\n") else None
            ids.extend(self._encode(part) if whole is None else (whole,))
        return ids

    def _encode(self, text: str) -> list[int]:
        ids = [token for piece in cut(text, self._digits) for token in self._ask_library(piece)]
        if not self._expansions or max(ids, default=0) < self._first_virtual:
            return ids
        first = self._first_virtual
        return [real for i in ids for real in ((i,) if i < first else self._expansions[i - first])]

    def _ask_library(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            # The library panics, outside Exception, when one match backtracks ten million times: a run of
            # millions of equal characters. Its panic type cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the text cannot be cut into words: {error}; break up its long runs") from error
        return ids


def _merges(metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    """Pairs in order of rank; of a pair listed twice only the first counts."""
    pairs: dict[tuple[str, str], None] = {}
    for text in fields.strings(metadata, PREFIX + "merges", fields.MAX_MERGES):
        cut = text.find(" ", 1)
        left, right = text[:cut], text[cut + 1 :]
        # A pair with an empty side or an inner space never meets: texts are non-empty and hold no spaces.
        if cut > 0 and right and " " not in right:
            pairs.setdefault((left, right))
    return list(pairs)


def _virtual(merges: Sequence[tuple[str, str]], ids: Mapping[str, int], pre: Pre) -> list[str]:
    """Texts that merging can produce, or start from, but that are no tokens."""
    missing: dict[str, None] = {}
    for left, right in merges:
        for text in (left, right, left + right):
            if text not in ids:
                missing[text] = None
    if missing and pre.ignore_merges:
        raise TokenizerError(
            PREFIX + "merges", f"makes {next(iter(missing))!r}, which is no token", RECONVERT
        )
    if not pre.space_marks:
        missing.update((char, None) for char in byte_alphabet().values() if char not in ids)
    elif any(byte_token(byte) not in ids for byte in range(256)):
        raise TokenizerError(PREFIX + "tokens", "lacks tokens <0x00> to <0xFF>", RECONVERT)
    return list(missing)


def _expansion(text: str, ids: Mapping[str, int], space_marks: bool) -> tuple[int, ...]:
    """The tokens that llama.cpp emits for a text that is no token: its bytes, as far as they are tokens."""
    names = [byte_token(byte) for byte in text.encode()] if space_marks else [c for c in text if c.isascii()]
    return tuple(ids[name] for name in names if name in ids)


def _build(ids: dict[str, int], merges: list[tuple[str, str]], pre: Pre) -> Tokenizer:
    model = BPE(vocab=ids, merges=merges, ignore_merges=pre.ignore_merges, byte_fallback=pre.space_marks)
    library = Tokenizer(model)
    steps: list[PreTokenizer] = [Split(Regex(split), "isolated") for split in pre.splits]
    if pre.space_marks:
        library.normalizer = Replace(" ", SPACE_MARK)
    else:
        steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
    library.pre_tokenizer = InTurn(steps)
    return library
