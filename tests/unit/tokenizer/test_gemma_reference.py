"""Are the ids of Gemma 3's own vocabulary those of the `sentencepiece` library, which it was trained with?"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import pytest
from sentencepiece import SentencePieceProcessor

from nvstreamd.engine.tokenizer import Tokenizer, load
from support.files import GEMMA3
from support.vocab_gguf import read_metadata
from unit.tokenizer.corpus import FUZZ_ALPHABET, TEXTS
from unit.tokenizer.pairs import G
from unit.tokenizer.sentencepiece_model import CONTROL, MARK, reference

# A vocabulary of 262144 tokens, three times.
pytestmark = pytest.mark.thorough
LONGEST_RUN = 31
BLANKS = (" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\v", "\x85")
TAGS = ("<h1>", "</td>", "<s>", "</s>", "<b>", "[multimodal]", "<start_of_image>", "</", "s>", "<")
CONTROLS = ("<bos>", "<eos>", "<unk>", "<pad>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<0x0A>")
JOINED = ("e\u0301", "\U0001f469\u200d\U0001f469\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308", "\u200d")
PIECES = (*TAGS, *CONTROLS, *JOINED, " ", "  ", " " * LONGEST_RUN, "\n", "\n" * (LONGEST_RUN + 1), "\t\t", "a", "the",
          " the", "\u00e9", "\u65e5\u672c", "\0", "x1", "123")


@pytest.fixture(scope="module")
def metadata() -> dict[str, object]:
    """That of the file."""
    return read_metadata(GEMMA3)


@pytest.fixture(scope="module")
def ours(metadata: dict[str, object]) -> Tokenizer:
    """The engine's tokenizer."""
    return load(metadata)


@pytest.fixture(scope="module")
def theirs(metadata: dict[str, object]) -> SentencePieceProcessor:
    """SentencePiece's."""
    return reference(metadata, prefix=False)


def check(ours: Tokenizer, theirs: SentencePieceProcessor, text: str) -> None:
    ids = ours.encode(text, False, False)
    assert ids == theirs.Encode(text), text
    assert ours.decode(ids) == text


def test_texts(ours: Tokenizer, theirs: SentencePieceProcessor) -> None:
    for text in TEXTS:
        check(ours, theirs, text)


@pytest.mark.parametrize("blank", BLANKS)
def test_runs_of_blanks(ours: Tokenizer, theirs: SentencePieceProcessor, blank: str) -> None:
    """There are tokens for up to 31 blanks, newlines or tabs."""
    for count in range(1, 3 * LONGEST_RUN + 2):
        for text in (blank * count, f"a{blank * count}b", f" {blank * count} ", f"\n{blank * count}\n"):
            check(ours, theirs, text)


def mixed(source: random.Random) -> str:
    return "".join(source.choices(PIECES, k=source.randint(1, 30)))


def letters(source: random.Random) -> str:
    return "".join(source.choices(FUZZ_ALPHABET, k=source.randint(1, 60)))


def characters(source: random.Random) -> Iterator[str]:
    """Of any script: most of Unicode's have no token here, but their bytes have."""
    for _ in range(source.randint(1, 40)):
        low, high = source.choice([(0, 0x3000), (0x1F000, 0x1FB00), (0xA000, 0xD800), (0xE000, 0x110000)])
        yield chr(source.randrange(low, high))


@pytest.mark.parametrize("make", [mixed, letters, lambda source: "".join(characters(source)).replace(MARK, "")],
                         ids=["tags, controls and blanks", "letters", "any script"])
def test_random_texts(ours: Tokenizer, theirs: SentencePieceProcessor, make: Callable[[random.Random], str]) -> None:
    source = random.Random(17)
    for _ in range(1500):
        check(ours, theirs, make(source))


def test_a_character_without_a_token_is_its_bytes(ours: Tokenizer, metadata: dict[str, object]) -> None:
    tokens = metadata[G + "tokens"]
    assert isinstance(tokens, list)
    for text in ("\0", "\r", "\U000e0041", "\ufffe"):
        assert [tokens[token] for token in ours.encode(text, False, False)] == [
            f"<0x{byte:02X}>" for byte in text.encode()]


def test_a_conversation_is_its_marks_and_the_texts_between_them(ours: Tokenizer, theirs: SentencePieceProcessor,
                                                               metadata: dict[str, object]) -> None:
    tokens = metadata[G + "tokens"]
    assert isinstance(tokens, list)
    marks = ("<bos>", "<start_of_turn>", "<end_of_turn>")
    text = ("<bos><start_of_turn>user\n\n\n  Say <h1>hi</h1> to\t\tme  <end_of_turn>\n<start_of_turn>model\n"
            "<s>no</s> \U0001f469\u200d\U0001f469<end_of_turn>")
    expected: list[int] = []
    for n, part in enumerate(re.split(f"({'|'.join(marks)})", text)):
        expected += [tokens.index(part)] if n % 2 else theirs.Encode(part)
    assert ours.encode(text, False, True) == expected


def test_nothing_that_a_user_writes_is_a_control_token(ours: Tokenizer, metadata: dict[str, object]) -> None:
    tokens, types = metadata[G + "tokens"], metadata[G + "token_type"]
    assert isinstance(tokens, list) and isinstance(types, list)
    controls = {token for token, kind in enumerate(types) if kind == CONTROL}
    for token in sorted(controls)[:500]:
        assert controls.isdisjoint(ours.encode(f"a{tokens[token]}b", False, False))


def test_a_tag_of_html_ends_no_answer(ours: Tokenizer, metadata: dict[str, object]) -> None:
    """llama.cpp takes "</s>" for the end of a text wherever it finds it: here it ends what is struck through."""
    tokens = metadata[G + "tokens"]
    assert isinstance(tokens, list)
    assert {tokens[token] for token in ours.eog_ids} == {"<eos>", "<end_of_turn>"}


def test_every_token_has_the_bytes_of_its_piece(ours: Tokenizer, theirs: SentencePieceProcessor) -> None:
    for token in range(ours.vocab_size):
        if theirs.IsByte(token):
            assert ours.token_bytes(token) == bytes([int(theirs.IdToPiece(token)[3:5], 16)])
        elif not theirs.IsControl(token) and not theirs.IsUnknown(token):
            assert ours.token_bytes(token).decode() == theirs.IdToPiece(token).replace(MARK, " ")
        else:
            assert not ours.token_bytes(token)


def test_the_mark_of_a_space_is_no_blank_in_a_run(ours: Tokenizer, theirs: SentencePieceProcessor) -> None:
    """As in llama.cpp. To SentencePiece U+2581 is a space like any other; it means the same to the model's reader."""
    for text in (MARK * 2, "a " + MARK + "b"):
        ids = ours.encode(text, False, False)
        assert ids != theirs.Encode(text) and ours.decode(ids) == theirs.Decode(theirs.Encode(text))
