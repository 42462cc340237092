"""What sets Qwen2 and Qwen2.5 models apart? Biases on q, k and v; rotary pairs are the halves of a head."""

from nvstreamd.architectures.hyper import Family

QWEN2 = Family("qwen2", interleaved_rope=False, qkv_bias=True, qk_norm=False)
