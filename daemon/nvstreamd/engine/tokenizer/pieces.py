"""Which bytes is a token? The exact bytes, as llama.cpp's token_to_piece gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from nvstreamd.engine.tokenizer.errors import TokenizerError
from nvstreamd.engine.tokenizer.fields import PREFIX, RECONVERT
from nvstreamd.engine.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

SPACE_MARK: Final = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for every byte: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return {byte: chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)}


def byte_token(byte: int) -> str:
    """The text of the token that stands for one byte in SentencePiece vocabularies."""
    return f"<0x{byte:02X}>"


def all_pieces(vocabulary: Vocabulary, space_marks: bool) -> tuple[bytes, ...]:
    """The bytes of every token, control tokens as their text.

    Args:
        vocabulary: the tokens.
        space_marks: texts are UTF-8 with U+2581 for spaces (SentencePiece), not in GPT-2's byte alphabet.

    Raises:
        TokenizerError: a byte token does not say which byte.
    """
    alphabet = {char: byte for byte, char in byte_alphabet().items()}
    return tuple(
        _piece(text, attribute, alphabet, space_marks)
        for text, attribute in zip(vocabulary.texts, vocabulary.attributes, strict=True)
    )


def _piece(text: str, attribute: int, alphabet: Mapping[str, int], space_marks: bool) -> bytes:
    if attribute & (UNKNOWN | CONTROL | USER_DEFINED):
        return text.encode()
    if attribute & NORMAL:
        return text.replace(SPACE_MARK, " ").encode() if space_marks else _from_alphabet(text, alphabet)
    return _byte(text) if attribute & BYTE else b""


def _from_alphabet(text: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[char] for char in text])
    except KeyError:
        # Not in the alphabet: llama.cpp spells it out, and the two must agree to the byte.
        return b"".join(
            bytes((alphabet[char],))
            if char in alphabet
            else f"[UNK_BYTE_0x{char.encode().hex()}{text}]".encode()
            for char in text
        )


def _byte(text: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    if match is None:
        raise TokenizerError(PREFIX + "token_type", f"{text!r} is marked as a byte but names none", RECONVERT)
    return bytes.fromhex(match[1])
