"""Does streamed text ever show half a character, or differ from the whole?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvstreamd.engine.tokenizer import Detokenizer, load
from nvstreamd.engine.tokenizer.pieces import byte_alphabet

BYTE_TOKENS = [bytes([byte]) for byte in range(256)]


@given(st.lists(st.binary(max_size=5), max_size=30))
def test_pushed_pieces_make_the_text_of_the_whole(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer(pieces.__getitem__)
    text = "".join(detokenizer.push(i) for i in range(len(pieces))) + detokenizer.flush()
    assert text == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(max_size=30))
def test_no_code_point_is_ever_split(text: str) -> None:
    detokenizer = Detokenizer(BYTE_TOKENS.__getitem__)
    shown = ""
    for byte in text.encode():
        shown += detokenizer.push(byte)
        assert text.startswith(shown)
    assert shown == text
    assert not detokenizer.pending


def test_pending_says_that_bytes_are_held_back() -> None:
    detokenizer = Detokenizer(BYTE_TOKENS.__getitem__)
    assert detokenizer.push(0xE2) == ""
    assert detokenizer.pending
    assert detokenizer.flush() == "\ufffd"
    assert not detokenizer.pending
    assert detokenizer.push(0x61) == "a"


def test_broken_bytes_in_the_middle_do_not_swallow_what_follows() -> None:
    detokenizer = Detokenizer(BYTE_TOKENS.__getitem__)
    assert [detokenizer.push(byte) for byte in b"\xe2\x82a\xff"] == ["", "", "\ufffda", "\ufffd"]


def test_control_tokens_are_shown_only_when_asked() -> None:
    tokens = [*byte_alphabet().values(), "<|im_end|>"]
    prefix = "tokenizer.ggml."
    tokenizer = load(
        {
            prefix + "model": "gpt2", prefix + "pre": "gpt-2", prefix + "tokens": tokens,
            prefix + "merges": [], prefix + "token_type": [1] * 256 + [3],
        }
    )  # fmt: skip
    ids = [*tokenizer.encode("a", False, False), 256]
    assert (tokenizer.decode(ids), tokenizer.decode(ids, special=True)) == ("a", "a<|im_end|>")
    assert tokenizer.detokenizer().push(256) == ""
    assert tokenizer.detokenizer(special=True).push(256) == "<|im_end|>"
