"""What sets Qwen3 models apart? An RMS norm on each head of q and k before the rotary embedding."""

from nvstreamd.architectures.hyper import Family

QWEN3 = Family("qwen3", interleaved_rope=False, qkv_bias=False, qk_norm=True)
