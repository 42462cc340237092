"""What sets Llama models apart? Rotary pairs lie interleaved (the GGUF converter permutes q and k)."""

from nvstreamd.architectures.hyper import Family

LLAMA = Family("llama", interleaved_rope=True, qkv_bias=False, qk_norm=False)
