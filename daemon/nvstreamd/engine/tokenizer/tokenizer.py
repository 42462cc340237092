"""What can be asked of a model's tokenizer? Ids of a text, bytes of an id, and its frozen facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from nvstreamd.engine.tokenizer import fields, pre_tokenizers, vocabulary
from nvstreamd.engine.tokenizer.bpe import Bpe
from nvstreamd.engine.tokenizer.detokenizer import Detokenizer
from nvstreamd.engine.tokenizer.errors import TokenizerError
from nvstreamd.engine.tokenizer.fields import PREFIX, RECONVERT
from nvstreamd.engine.tokenizer.partition import Specials, SpecialToken
from nvstreamd.engine.tokenizer.pieces import all_pieces
from nvstreamd.engine.tokenizer.pre_tokenizers import Pre
from nvstreamd.engine.tokenizer.spm import Spm
from nvstreamd.engine.tokenizer.vocabulary import (
    CONTROL,
    LSTRIP,
    MARK,
    RSTRIP,
    UNKNOWN,
    USER_DEFINED,
    Defaults,
    Vocabulary,
)

_BPE_MODELS = ("gpt2", "gemma4")
_SPM_MODEL = "llama"
MAX_INPUT = 1 << 22


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of one model file. Immutable; safe to share between threads.

    Attributes:
        model: `tokenizer.ggml.model`.
        pre: the pre-tokenizer in use ("" for a SentencePiece vocabulary).
        vocab_size: number of tokens.
        bos_id, eos_id, eot_id, unk_id: special ids, None where the model has none.
        eog_ids: ids that end a generation.
        add_bos, add_eos: what `encode(add_special=True)` puts first and last.
        add_space_prefix: a text that begins with no special token gets a space in front.
        notes: what was assumed or repaired; worth telling an administrator.
    """

    model: str
    pre: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    notes: tuple[str, ...]
    _encode: Callable[[str], list[int]] = field(repr=False)
    _specials: Specials = field(repr=False)
    _pieces: tuple[bytes, ...] = field(repr=False)
    _hidden: frozenset[int] = field(repr=False)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of a text: llama_tokenize's, but where docs/tokenizer.md says otherwise.

        Args:
            text: any text.
            add_special: add the begin and end tokens where the model wants them.
            parse_special: text that spells a control token is that token. False for anything a user wrote.

        Raises:
            TokenizerError: the vocabulary cannot express the text.
            ValueError: the text is longer than `MAX_INPUT` characters, or holds a lone surrogate.
        """
        return self.encode_parts([(text, parse_special)], add_special)

    def encode_parts(
        self, parts: Iterable[tuple[str, bool]], add_special: bool, structure: str = ""
    ) -> list[int]:
        """The ids of a text of which only some stretches may spell control tokens.

        Stretches that meet without a special token between them are cut and merged as one text, so the ids
        are those of the whole text unless an unprivileged stretch spells a control token.

        Args:
            parts: text and whether it may spell control tokens, in order; see `chat_template.Passage`.
            add_special: add the begin and end tokens where the model wants them.
            structure: what a template writes itself, see `chat_template.Prompt`. Tokens that it spells are not found
                in the stretches that may spell none, not even those that a vocabulary wants found in any text.

        Raises:
            TokenizerError: the vocabulary cannot express the text.
            ValueError: the text is longer than `MAX_INPUT` characters, or holds a lone surrogate.
        """
        marks = self._specials.marks(structure) if structure else frozenset()
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        # As SentencePiece has it: a space before the text, none behind special tokens in it.
        prefix = " " if self.add_space_prefix else ""
        for is_text, group in groupby(self._fragments(parts, structure), lambda part: isinstance(part, str)):
            if is_text:
                ids.extend(self._plain(prefix + "".join(str(part) for part in group), marks))
            else:
                ids.extend(part for part in group if isinstance(part, int))
            prefix = ""
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _fragments(self, parts: Iterable[tuple[str, bool]], structure: str) -> Iterator[str | int]:
        room = MAX_INPUT
        for text, parse_special in parts:
            room -= len(text)
            if room < 0:
                raise ValueError(f"the text has more than {MAX_INPUT} characters: send it in parts")
            text.encode()  # a lone surrogate must not reach the library
            yield from self._specials.partition(text, parse_special, structure)

    def _plain(self, text: str, marks: frozenset[int]) -> list[int]:
        """The ids of a text without special tokens. No merging of its characters makes one."""
        ids = self._encode(text)
        if self._hidden.isdisjoint(ids) and marks.isdisjoint(ids):
            return ids
        never = self._hidden | marks
        return [each for token in ids for each in (self._spelled(token) if token in never else (token,))]

    def _spelled(self, token: int) -> list[int]:
        """A control token's text in tokens that are none."""
        text = self._pieces[token].decode("utf-8", "replace")
        ids = [each for char in text for each in self._encode(char)]
        if token in ids:
            raise TokenizerError(PREFIX + "tokens", f"has {text!r} as a control token only", "leave that character out")
        return ids

    def token_bytes(self, token_id: int, special: bool = False) -> bytes:
        """The exact bytes of a token, as llama_token_to_piece gives them.

        Args:
            token_id: an id of this vocabulary.
            special: give control and unknown tokens as their text, not as nothing.

        Raises:
            IndexError: no such token.
        """
        if not 0 <= token_id < self.vocab_size:
            raise IndexError(f"token {token_id} of a vocabulary of {self.vocab_size}")
        return self._pieces[token_id] if special or token_id not in self._hidden else b""

    def detokenizer(self, special: bool = False) -> Detokenizer:
        """A fresh decoder for one stream of ids."""
        return Detokenizer(lambda token_id: self.token_bytes(token_id, special))

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of these ids; bytes that are not UTF-8 become U+FFFD. Nothing is stripped."""
        return b"".join(self.token_bytes(i, special) for i in ids).decode("utf-8", "replace")


def load(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF's metadata describes.

    Args:
        metadata: the key-value pairs of the file, arrays as lists.

    Raises:
        TokenizerError: a field is missing, wrong, too large, or names something that is not supported.
    """
    model = fields.optional_str(metadata, PREFIX + "model")
    if model == _SPM_MODEL:
        return _load_spm(metadata)
    if model in _BPE_MODELS:
        return _load_bpe(metadata, model)
    raise TokenizerError(
        PREFIX + "model",
        "is missing" if model is None else f"is {model!r}, which is not supported",
        f"supported are {', '.join((*_BPE_MODELS, _SPM_MODEL))}: choose another model file",
    )


def _load_bpe(metadata: Mapping[str, object], model: str) -> Tokenizer:
    name, pre, notes = _pre(metadata, model)
    default = None if model == "gemma4" else 11
    words = vocabulary.read(metadata, Defaults(bos=default if pre.default_bos else None, eos=default))
    core = Bpe(metadata, words, pre)
    return _assemble(
        metadata, words, core.encode, _Facts(model, name, pre.add_bos, False, pre.space_marks), notes
    )


def _load_spm(metadata: Mapping[str, object]) -> Tokenizer:
    words = vocabulary.read(metadata, Defaults(bos=1, eos=2, unk=0))
    core = Spm(words, fields.scores(metadata, len(words.texts)))
    return _assemble(metadata, words, core.encode, _Facts(_SPM_MODEL, "", True, True, True), ())


def _pre(metadata: Mapping[str, object], model: str) -> tuple[str, Pre, tuple[str, ...]]:
    key = PREFIX + "pre"
    given = "gemma4" if model == "gemma4" else fields.optional_str(metadata, key)
    name = given or "default"
    pre = pre_tokenizers.find(name)
    if pre is None:
        known = ", ".join(pre_tokenizers.supported())
        raise TokenizerError(key, f"is {name!r}, which is not supported", f"supported are: {known}")
    if name == "default":
        why = "is 'default'" if given else "is missing"
        return name, pre, (f"{key} {why}: generic splitting as in llama.cpp; quality may suffer",)
    return name, pre, ()


@dataclass(frozen=True)
class _Facts:
    """The settings of a kind of tokenizer that hold when the file does not say."""

    model: str
    pre: str
    add_bos: bool
    add_space_prefix: bool
    space_marks: bool


def _assemble(
    metadata: Mapping[str, object],
    words: Vocabulary,
    encode: Callable[[str], list[int]],
    facts: _Facts,
    notes: tuple[str, ...],
) -> Tokenizer:
    add_bos = _flag(metadata, "add_bos_token", facts.add_bos)
    if facts.pre in pre_tokenizers.ALWAYS_BOS and not add_bos:
        add_bos, notes = True, (*notes, f"{PREFIX}add_bos_token is false; this model needs it, so it is true")
    add_eos = _flag(metadata, "add_eos_token", False)
    _need(words.bos_id, add_bos, "bos")
    _need(words.eos_id, add_eos, "eos")
    # Only SentencePiece reads the prefix; the key is checked for every model all the same.
    prefix = _flag(metadata, "add_space_prefix", facts.add_space_prefix) and facts.model == _SPM_MODEL
    return Tokenizer(
        model=facts.model, pre=facts.pre, vocab_size=len(words.texts), bos_id=words.bos_id,
        eos_id=words.eos_id, eot_id=words.eot_id, unk_id=words.unk_id, eog_ids=words.end_ids,
        add_bos=add_bos, add_eos=add_eos, add_space_prefix=prefix, notes=(*notes, *words.notes),
        _encode=encode, _specials=_specials(words),
        _pieces=all_pieces(words, facts.space_marks),
        _hidden=frozenset(i for i, bits in enumerate(words.attributes) if bits & (CONTROL | UNKNOWN)),
    )  # fmt: skip


def _flag(metadata: Mapping[str, object], name: str, default: bool) -> bool:
    given = fields.optional_bool(metadata, PREFIX + name)
    return default if given is None else given


def _need(token: int | None, wanted: bool, name: str) -> None:
    if wanted and token is None:
        raise TokenizerError(f"{PREFIX}{name}_token_id", f"is missing, but {name} is to be added", RECONVERT)


def _specials(words: Vocabulary) -> Specials:
    return Specials(
        SpecialToken(
            id=i,
            text=words.texts[i],
            # A token repaired to control may still carry the user-defined bit: control decides.
            always=words.attributes[i] & (CONTROL | UNKNOWN | USER_DEFINED | MARK) == USER_DEFINED,
            lstrip=bool(words.attributes[i] & LSTRIP),
            rstrip=bool(words.attributes[i] & RSTRIP),
        )
        for i in words.special_ids()
    )
