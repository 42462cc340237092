"""Which tokens does a GGUF define, what is each, and which of them are special? As llama.cpp decides it.

Reference of the behaviour: llama.cpp, src/llama-vocab.cpp, llama_vocab::impl::load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvstreamd.engine.tokenizer import fields
from nvstreamd.engine.tokenizer import special_names as names
from nvstreamd.engine.tokenizer.errors import TokenizerError
from nvstreamd.engine.tokenizer.fields import PREFIX, RECONVERT

UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE = (1 << bit for bit in range(6))
LSTRIP, RSTRIP = 1 << 7, 1 << 8
# Shown like a user-defined token, but it parts the messages of a conversation: no user's text is one.
MARK = 1 << 9
_ATTRIBUTE_OF_TYPE = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED, 6: BYTE}


@dataclass(frozen=True)
class Defaults:
    """Special ids a tokenizer model has when the file names none."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with attribute bits, and the special ids.

    Attributes:
        texts: token texts as stored in the file (BPE: in the byte alphabet).
        ids: id by text.
        attributes: bit set by id, of this module's constants.
        end_ids: ids that end a generation.
        notes: what was repaired and why, for the log and for `doctor`.
    """

    texts: tuple[str, ...]
    ids: Mapping[str, int]
    attributes: tuple[int, ...]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    end_ids: frozenset[int]
    notes: tuple[str, ...]

    def special_ids(self) -> list[int]:
        """Ids looked for in raw text before anything else, longest text first."""
        marked = CONTROL | USER_DEFINED | UNKNOWN
        found = (i for i, attribute in enumerate(self.attributes) if attribute & marked)
        return sorted(found, key=lambda i: -len(self.texts[i].encode()))


def read(metadata: Mapping[str, object], defaults: Defaults) -> Vocabulary:
    """The vocabulary of a GGUF's metadata.

    Raises:
        TokenizerError: a field is missing, of another type, out of range or too large.
    """
    texts = _texts(metadata)
    ids = _ids(texts)
    draft = _Draft(texts, ids, _attributes(metadata, len(texts)))
    bos, eos, unk = (
        _special(metadata, name, default, len(texts))
        for name, default in (("bos", defaults.bos), ("eos", defaults.eos), ("unknown", defaults.unk))
    )
    eot, ends = draft.find_special(metadata, eos)
    draft.set_strip(metadata)
    return Vocabulary(
        tuple(texts), ids, tuple(draft.attributes), bos, eos, eot, unk, frozenset(ends), tuple(draft.notes)
    )


def _texts(metadata: Mapping[str, object]) -> list[str]:
    key = PREFIX + "tokens"
    # llama.cpp reads C strings, so a token ends at its first NUL; an empty one gets a name.
    raw = (text.split("\0", 1)[0] for text in fields.strings(metadata, key, fields.MAX_TOKENS))
    texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(raw)]
    if not texts:
        raise TokenizerError(key, "is empty", RECONVERT)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(key, "holds text that is not UTF-8", RECONVERT) from error
    return texts


def _ids(texts: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for index, text in enumerate(texts):
        if ids.setdefault(text, index) != index:
            raise TokenizerError(PREFIX + "tokens", f"{text!r} is token {ids[text]} and {index}", RECONVERT)
    return ids


def _attributes(metadata: Mapping[str, object], size: int) -> list[int]:
    types = fields.token_types(metadata, size)
    return [NORMAL] * size if types is None else [_ATTRIBUTE_OF_TYPE.get(kind, 0) for kind in types]


def _special(metadata: Mapping[str, object], name: str, default: int | None, size: int) -> int | None:
    given = fields.optional_id(metadata, f"{PREFIX}{name}_token_id", size)
    if given is not None:
        return given
    return default if default is not None and default < size else None


class _Draft:
    """A vocabulary while its attributes are still being corrected."""

    def __init__(self, texts: list[str], ids: Mapping[str, int], attributes: list[int]) -> None:
        self.texts, self.ids, self.attributes = texts, ids, attributes
        self.notes: list[str] = []

    def find_special(self, metadata: Mapping[str, object], eos: int | None) -> tuple[int | None, set[int]]:
        eot = self._named(metadata, ("eot",), names.END_OF_TURN)
        eom = self._named(metadata, ("eom",), names.END_OF_MESSAGE)
        self._named(metadata, ("fim_pre", "prefix"), names.FIM_PREFIX)
        self._named(metadata, ("fim_suf", "suffix"), names.FIM_SUFFIX)
        self._named(metadata, ("fim_mid", "middle"), names.FIM_MIDDLE)
        fim = [
            self._named(metadata, ("fim_pad",), names.FIM_PAD),
            self._named(metadata, ("fim_rep",), names.FIM_REPOSITORY),
            self._named(metadata, ("fim_sep",), names.FIM_SEPARATOR),
        ]
        self._mark_unused()
        ends = {token for token in fim if token is not None}
        ends.update(self._make_control(text for text in names.END_OF_GENERATION if not self._is_tag(text, eos)))
        for text in names.ALWAYS_SHOWN:
            self._set(text, USER_DEFINED | MARK)
        ends.update(token for token in (eos, eot, eom) if token is not None)
        self._except_ends(ends)
        return eot, ends

    def _named(
        self, metadata: Mapping[str, object], keys: Iterable[str], texts: tuple[str, ...]
    ) -> int | None:
        """The id a key gives; else the first known text, which then becomes a control token."""
        given = [fields.optional_id(metadata, f"{PREFIX}{key}_token_id", len(self.texts)) for key in keys]
        found = [token for token in given if token is not None]
        if found:
            return found[-1]
        first = next((text for text in texts if text in self.ids), None)
        return None if first is None else self._make_control((first,))[0]

    def _make_control(self, texts: Iterable[str]) -> list[int]:
        found = [self.ids[text] for text in texts if text in self.ids]
        for token in found:
            if not self.attributes[token] & CONTROL:
                self.notes.append(
                    f"token {token} {self.texts[token]!r} was not marked as control; treated as such"
                )
                self.attributes[token] |= CONTROL
        return found

    def _is_tag(self, text: str, eos: int | None) -> bool:
        """True of "</s>" in a vocabulary that has the tags of HTML as words."""
        words = (*names.TAGS_BESIDE_S, text)
        return (text == "</s>" and self.ids.get(text) != eos
                and all(word in self.ids and self.attributes[self.ids[word]] == USER_DEFINED for word in words))

    def _mark_unused(self) -> None:
        for token, attribute in enumerate(self.attributes):
            if attribute & CONTROL and "unused" in self.texts[token]:
                self.attributes[token] |= UNUSED

    def _set(self, text: str, attribute: int) -> None:
        if text in self.ids:
            self.attributes[self.ids[text]] = attribute

    def _except_ends(self, ends: set[int]) -> None:
        texts = {self.texts[token] for token in ends}
        if any(both <= texts for both in names.END_IS_NO_END) and "<|end|>" in texts:
            ends.discard(self.ids["<|end|>"])
            self._set("<|end|>", USER_DEFINED | MARK)
        if {"<|tool_response>", "</s>"} <= texts:
            ends.discard(self.ids["</s>"])
            self._set("</s>", NORMAL)

    def set_strip(self, metadata: Mapping[str, object]) -> None:
        """Special tokens that swallow white space beside them: known only by the names of models."""
        pre = fields.optional_str(metadata, PREFIX + "pre") or ""
        model = (fields.optional_str(metadata, "general.name") or "").lower()
        if any(name in pre for name in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
            self._strip("<mask>", LSTRIP)
        elif "phi-3" in model or "phi3" in model:
            keep = {"<unk>", "<s>", "<|endoftext|>"}
            for token, attribute in enumerate(self.attributes):
                if attribute & (CONTROL | USER_DEFINED | UNKNOWN) and self.texts[token] not in keep:
                    self.attributes[token] |= RSTRIP
            self._strip("</s>", RSTRIP)
        elif "modern-bert" in model:
            self._strip("[MASK]", LSTRIP)

    def _strip(self, text: str, side: int) -> None:
        if text in self.ids:
            self.attributes[self.ids[text]] |= side
