"""What sets Mistral models apart? The Llama layout; heads may be wider than width / heads (key_length).

Most Mistral files call themselves `llama`; those that say `mistral` mean the same arithmetic. The sliding window
of the first releases is not applied, as in llama.cpp.
"""

from nvstreamd.architectures.hyper import Family

MISTRAL = Family("mistral", interleaved_rope=True, qkv_bias=False, qk_norm=False)
