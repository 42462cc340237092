"""Which tokenizer metadata goes into a generated model: that of a real one, or one small enough to read?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nvstreamd.weights.packed.files import open_all
from nvstreamd.weights.packed.gguf import read_header
from support.files import SMOLLM2

G = "tokenizer.ggml."
NORMAL, CONTROL = 1, 3
MERGES = (("h", "e"), ("t", "he"), ("Ġ", "the"), ("i", "n"), ("o", "n"), ("a", "n"), ("Ġ", "a"))
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def real_vocabulary(path: Path | None = None) -> dict[str, object]:
    """The tokenizer metadata of `path`, by default of SmolLM2 ($NVSTREAM_TEST_MODEL)."""
    chosen = path or SMOLLM2
    with ExitStack() as stack:
        metadata, _, _ = read_header(open_all([chosen], stack)[0])
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


def byte_alphabet() -> list[str]:
    """One printable character a byte, as GPT-2's byte-level BPE writes them."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


def synthetic_vocabulary(size: int = 0) -> dict[str, object]:
    """A byte-level BPE of 256 bytes, a few merges and special tokens, filled up to `size` with unused tokens."""
    tokens = [*byte_alphabet(), *(left + right for left, right in MERGES), *SPECIALS]
    tokens += [f"<unused{number}>" for number in range(size - len(tokens))]
    first_special = tokens.index(SPECIALS[0])
    return {
        G + "model": "gpt2",
        G + "pre": "gpt-2",
        G + "tokens": tokens,
        G + "token_type": [NORMAL if index < first_special else CONTROL for index in range(len(tokens))],
        G + "merges": [f"{left} {right}" for left, right in MERGES],
        G + "bos_token_id": tokens.index("<|im_start|>"),
        G + "eos_token_id": tokens.index("<|im_end|>"),
        G + "unknown_token_id": first_special,
        G + "padding_token_id": first_special,
        G + "add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
