"""Which token texts mean something by themselves? llama.cpp's lists, by which it repairs careless GGUF files.

Facts from llama.cpp's src/llama-vocab.cpp (llama_vocab::impl::load). Where several texts of one list are in a
vocabulary, llama.cpp takes whichever its hash table yields first; here the first in the list is taken.
"""

from __future__ import annotations

from typing import Final

END_OF_TURN: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
END_OF_MESSAGE: Final = ("<|eom_id|>",)
FIM_PREFIX: Final = (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|prefix|>", "<|plamo:fim_prefix|>",
)  # fmt: skip
FIM_SUFFIX: Final = (
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
    "<|suffix|>", "<|plamo:fim_suffix|>",
)  # fmt: skip
FIM_MIDDLE: Final = (
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
    "<|middle|>", "<|plamo:fim_middle|>",
)  # fmt: skip
FIM_PAD: Final = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")
FIM_REPOSITORY: Final = ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
FIM_SEPARATOR: Final = ("<|file_sep|>", "<|plamo:file_separator|>")

END_OF_GENERATION: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    "<|ifm|im_end|>",
)  # fmt: skip
# Where these are words, "</s>" is one as well: it ends what is struck through in HTML, and no text.
TAGS_BESIDE_S: Final = ("<s>", "<b>", "</b>")
# gpt-oss writes its channels with these: they must reach the reader of the text.
ALWAYS_SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
# With one of these sets among the end-of-generation tokens, "<|end|>" only ends a message.
END_IS_NO_END: Final = (
    frozenset({"<|return|>", "<|call|>"}), frozenset({"<|return|>", "<|calls|>"}),
    frozenset({"<|flush|>", "<|call|>"}), frozenset({"<|flush|>", "<|calls|>"}),
)  # fmt: skip
