"""How does each `tokenizer.ggml.pre` cut a text before merging? One table of facts.

The names, expressions and switches are those that llama.cpp (src/llama-vocab.cpp, b11549) accepts and uses;
the expressions are written for Oniguruma, where `\\s` and `\\p{..}` know Unicode. Differences of form, none
of result: llama.cpp takes \\p{Lu} and \\p{Ll} for any letter, so they are \\p{L} here; and `\\s+$` is written
so that it does not try every position of a long run of white space again.

Names that llama.cpp knows and this table leaves out, both of embedding models: `whitespace` and `mmbert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Digits(Enum):
    """A grouping of digits from the right, which no expression does in linear time."""

    NONE = "none"
    NUMBERS = "digits of any script"
    ASCII = "ASCII digits"


@dataclass(frozen=True)
class Pre:
    """How one family of BPE tokenizers cuts text.

    Attributes:
        splits: expressions applied one after another, each inside the pieces of the one before.
        ignore_merges: a whole piece that is a token is that token.
        add_bos: put the begin token first, unless the file says otherwise.
        default_bos: whether a file that names no begin token has the usual default.
        space_marks: token texts are UTF-8 with U+2581 for spaces, and `<0xNN>` for bytes.
        newline_runs: a run of newlines that is a token is that token.
        digits: a grouping of digits made before the splits.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    default_bos: bool = True
    space_marks: bool = False
    newline_runs: bool = False
    digits: Digits = Digits.NONE


_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_A = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+"
_CASED_B = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*"
_CASED_MARK_A = r"[^\r\n\p{L}\p{N}]?(?:(?=[\p{L}\p{M}])[^a-z])*(?:(?=[\p{L}\p{M}])[^A-Z])+"
_CASED_MARK_B = r"[^\r\n\p{L}\p{N}]?(?:(?=[\p{L}\p{M}])[^a-z])+(?:(?=[\p{L}\p{M}])[^A-Z])*"
_OTHER_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LETTERS_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_OTHER}|{_SPACE}"
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
# `\s*[\r\n]+`, not tried again inside a run of white space in which it has failed: that would be quadratic.
_NEWLINES_ONCE = r"(?<![^\S\r\n])\s*[\r\n]+"
_MARK_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_DEEPSEEK3 = rf"{_MARK_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_KANA = r"[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"
_CJK_OLD = r"[[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]&&[^\s]]+"
_POEM = r" ?[^(\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]+"
_LINES = r"[^\n]+|\n+"
_HAN = (
    r"\u4E00-\u9FFF\u3400-\u4DBF\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}"
    r"\x{2CEB0}-\x{2EBEF}\uF900-\uFAFF\x{2F800}-\x{2FA1F}"
)
# Letters of DeepSeek LLM: Unicode's cased letters of an older version, so written out.
_DEEPSEEK_LLM_LETTERS = (
    r"\s?[A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370"
    r"-\u0373\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-"
    r"\u0481\u048A-\u052F\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF"
    r"\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-"
    r"\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC"
    r"\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115"
    r"\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E"
    r"\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-"
    r"\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+"
)
# The original ranges span Unicode spaces, which llama.cpp hides from them: hence \u3001 and `&&`.
_DEEPSEEK_LLM_MARKS = r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3001-\u3002]+"
_AFMOE_SCRIPTS = (
    r"[\u4E00-\u9FFF\u3400-\u4DBF\u8C48-\uFAFF\u3040-\u309F\u30A0-\u30FF\uFF65-\uFF9F\u2F00-\u2FDF\u0E40-"
    r"\u0E7F\u0E80-\u0EFF\u1780-\u17FF\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF\u1100-\u11FF]+"
)
_YOUTU_SCRIPTS = (
    r"[\uAC00-\uD7A3\u3131-\u318E]+|[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C\u3001-"
    r"\u303F\uFE30-\uFE4F]+|[\u3105-\u312F]+|[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"
)

_FAMILIES: Final = {
    "default": Pre((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Pre((_GPT2,)),
    "llama-bpe": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": Pre((_LLAMA3,)),
    "chatglm-bpe": Pre((_LLAMA3,), default_bos=False),
    "glm4": Pre((_LLAMA3,), default_bos=False, ignore_merges=True),
    "jais-2": Pre((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_NEWLINES_ONCE}|{_CASCADE}",)),
    "minicpm5": Pre(
        (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_OTHER}|{_SPACE}"),
        ignore_merges=True,
    ),
    "qwen2": Pre((_QWEN2,)),
    "qwen35": Pre(
        (rf"{_CONTRACTION}|{_LETTERS_MARKS}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",)
    ),
    "laguna": Pre((_LINES, _QWEN2)),
    "k2-horizon": Pre(
        (rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}\u200C\u200D]+|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}",)
    ),
    "ufakzeka": Pre((rf"{_WORD}|\p{{N}}|{_OTHER}|{_SPACE}",)),
    "seed-coder": Pre((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)),
    "bailingmoe": Pre(
        (rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_OTHER}|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "exaone-moe": Pre(
        (rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "smollm": Pre((r"\p{N}", _GPT2)),
    "falcon": Pre((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": Pre(
        (r"[\r\n]", _DEEPSEEK_LLM_LETTERS, _DEEPSEEK_LLM_MARKS, r"(?<!\s)\s++\z", _CJK_OLD, r"\p{N}+")
    ),
    "deepseek-coder": Pre((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_OLD, r"\p{N}")),
    "deepseek-v3": Pre((r"\p{N}{1,3}", _KANA, rf"{_DEEPSEEK3}[\r\n]*|{_SPACE}")),
    "spark2_5": Pre((r"\p{N}{1,3}", _KANA, rf"{_DEEPSEEK3}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    "afmoe": Pre(
        (_AFMOE_SCRIPTS,
         rf"{_DEEPSEEK3}[\r\n]*|{_SPACE}"),
        digits=Digits.NUMBERS,
    ),
    "youtu": Pre(
        (_YOUTU_SCRIPTS,
         rf"{_LETTERS_MARKS}{_CONTRACTION}?|\p{{N}}|{_OTHER_SLASH}|{_SPACE}"),
        ignore_merges=True,
    ),
    "tekken": Pre(
        (rf"{_CASED_A}|{_CASED_B}|\p{{N}}|{_OTHER_SLASH}|{_SPACE}",), ignore_merges=True, add_bos=True
    ),
    "gpt-4o": Pre(
        (rf"{_CASED_A}{_CONTRACTION}?|{_CASED_B}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHER_SLASH}|{_SPACE}",)
    ),
    "granite-embed-multi-97m": Pre(
        (rf"{_CASED_MARK_A}{_CONTRACTION}?|{_CASED_MARK_B}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHER_SLASH}|{_SPACE}",),
        ignore_merges=True,
    ),
    "tiny_aya": Pre(
        (rf"{_LETTERS_MARKS}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHER_SLASH}|{_SPACE}",), digits=Digits.NUMBERS
    ),
    "kimi-k2": Pre(
        (rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}",)
    ),
    "superbpe": Pre((r"\p{N}+",), digits=Digits.ASCII),
    "bloom": Pre((_POEM,)),
    "viking": Pre((_POEM, r"\p{N}")),
    "chameleon": Pre(
        ("<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}",
         r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
        add_bos=True,
    ),
    "gemma4": Pre((_LINES,), space_marks=True, newline_runs=True),
    "sarvam-moe": Pre((_LINES,), space_marks=True),
}  # fmt: skip

_ALIASES: Final = {
    "gpt-2": (
        "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",
        "modern-bert",
        "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "mpt", "olmo", "jais", "trillion",
        "granite-docling",
    ),
    "llama-bpe": (
        "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    ),
    "dbrx": ("smaug-bpe",),
    "glm4": ("glm5",),
    "qwen2": (
        "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2",
    ),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
    "smollm": (
        "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2",
    ),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "tiny_aya": ("cohere2moe",),
    "bloom": ("poro-chat", "gpt3-finnish"),
    "gemma4": ("granite-embed-multi-311m",),
}  # fmt: skip


def supported() -> tuple[str, ...]:
    """Every value of `tokenizer.ggml.pre` that can be served, sorted."""
    aliases = {name for names in _ALIASES.values() for name in names}
    return tuple(sorted(set(_FAMILIES) | aliases))


def find(name: str) -> Pre | None:
    """The facts of a `tokenizer.ggml.pre`, or None when it is not a supported one."""
    family = next((key for key, names in _ALIASES.items() if name in names), name)
    return _FAMILIES.get(family)


# llama.cpp starts these with the begin token whatever the file says.
ALWAYS_BOS: Final = frozenset({"gemma4", *_ALIASES["gemma4"]})
