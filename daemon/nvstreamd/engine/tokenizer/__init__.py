"""How does a model file's own metadata become a tokenizer? `load` it; ids equal llama.cpp's.

Only the GGUF's metadata and the `tokenizers` library are used: no network, no other file.
"""

from nvstreamd.engine.tokenizer.detokenizer import Detokenizer
from nvstreamd.engine.tokenizer.errors import ChatTemplateError, TokenizerError
from nvstreamd.engine.tokenizer.pre_tokenizers import supported as supported_pre_tokenizers
from nvstreamd.engine.tokenizer.tokenizer import Tokenizer, load

__all__ = [
    "ChatTemplateError",
    "Detokenizer",
    "Tokenizer",
    "TokenizerError",
    "load",
    "supported_pre_tokenizers",
]
