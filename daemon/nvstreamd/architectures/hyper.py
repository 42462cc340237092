"""Which numbers define a model, and does the file's tensor table agree with them? No torch here.

Keys are those of the GGUF specification, `ARCH.` standing for general.architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvstreamd.errors import BadModelFile

MOST_WIDTH = 1 << 20
MOST_CONTEXT = 1 << 24
MOST_LAYERS = 1 << 12
MOST_VOCABULARY = 1 << 22
# Below it a float32 reciprocal or quotient overflows: nothing sane is that small.
SMALLEST_REAL = 1e-20


@dataclass(frozen=True, slots=True)
class Family:
    """What sets one family of decoders apart. `interleaved_rope`: pairs (0,1),(2,3).. instead of halves."""

    name: str
    interleaved_rope: bool
    qkv_bias: bool
    qk_norm: bool


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyperparameters of a dense decoder. Widths count elements, `context` tokens."""

    family: Family
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    feed_forward: int
    vocabulary: int
    context: int
    epsilon: float
    rope_base: float
    rope_scale: float

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    def kv_elements_per_token(self) -> int:
        """Elements of keys and values that a token leaves in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


class Keys:
    """Reads `ARCH.key` values, each with its type and range checked."""

    def __init__(self, path: str, metadata: Mapping[str, object]) -> None:
        self.path = path
        self.metadata = metadata
        self.architecture = metadata.get("general.architecture")

    def bad(self, key: str, problem: str, hint: str = "convert the model again") -> BadModelFile:
        return BadModelFile(f"{self.path}: {self.architecture}.{key} {problem}", hint, field=key)

    def integer(self, key: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to `most`; per-layer arrays count when all entries are equal."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.bad(key, f"is {str(value)[:60]}, expected a whole number from 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not SMALLEST_REAL < value < 1e12:
            raise self.bad(key, f"is {str(value)[:60]}, expected a positive number")
        return float(value)


def parse(path: str, metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]],
          families: Mapping[str, Family]) -> Hyper:
    """The hyperparameters of a file; `shapes` are its tensors'. Raises BadModelFile naming the key."""
    keys = Keys(path, metadata)
    family = families.get(str(keys.architecture))
    if family is None:
        known = ", ".join(sorted(families))
        raise BadModelFile(f"{path}: general.architecture is {str(keys.architecture)[:60]!r}", f"supported: {known}",
                           field="general.architecture")
    heads = keys.integer("attention.head_count", MOST_WIDTH)
    width = keys.integer("embedding_length", MOST_WIDTH)
    head_dim = keys.integer("attention.key_length", MOST_WIDTH, max(1, width // heads))
    hyper = Hyper(
        family=family,
        layers=keys.integer("block_count", MOST_LAYERS),
        width=width,
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads, heads),
        head_dim=head_dim,
        rope_dim=keys.integer("rope.dimension_count", head_dim, head_dim),
        feed_forward=keys.integer("feed_forward_length", MOST_WIDTH),
        vocabulary=shapes.get("token_embd.weight", (0,))[0],
        context=keys.integer("context_length", MOST_CONTEXT),
        epsilon=keys.real("attention.layer_norm_rms_epsilon", 1e-5),
        rope_base=keys.real("rope.freq_base", 10000.0),
        rope_scale=_rope_scale(keys),
    )
    _check(keys, hyper, shapes)
    return hyper


def _rope_scale(keys: Keys) -> float:
    """What positions are multiplied by: 1, or 1/factor for linear scaling, which a factor without a type means."""
    if f"{keys.architecture}.rope.scale_linear" in keys.metadata:
        raise keys.bad("rope.scale_linear", "is a key of old files", "convert the model again")
    has_factor = f"{keys.architecture}.rope.scaling.factor" in keys.metadata
    kind = keys.metadata.get(f"{keys.architecture}.rope.scaling.type", "linear" if has_factor else "none")
    if kind not in ("none", "linear"):
        raise keys.bad("rope.scaling.type", f"is {str(kind)[:60]!r}",
                       "none, linear and Llama 3's rope_freqs are supported")
    return 1.0 / keys.real("rope.scaling.factor", 1.0) if kind == "linear" else 1.0


def _check(keys: Keys, hyper: Hyper, shapes: Mapping[str, tuple[int, ...]]) -> None:
    _check_numbers(keys, hyper)
    expected = global_shapes(hyper, shapes)
    for number in range(hyper.layers):
        prefix = f"blk.{number}."
        expected |= {prefix + name: shape for name, shape in layer_shapes(hyper).items()}
        expected |= {prefix + name: shape for name, shape in optional_layer_shapes(hyper).items()
                     if prefix + name in shapes}
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            found = f"has shape {shapes[name]}" if name in shapes else "is missing"
            raise BadModelFile(f"{keys.path}: tensor {name} {found}, expected {shape}", "convert the model again",
                               field=name)
    # A tensor that the arithmetic would ignore is an error: the answer would be another model's.
    unknown = next(iter(sorted(shapes.keys() - expected.keys())), None)
    if unknown is not None:
        raise BadModelFile(f"{keys.path}: tensor {unknown[:200]} is unknown to family {hyper.family.name}",
                           "this kind of model is not supported", field=unknown[:200])


def _check_numbers(keys: Keys, hyper: Hyper) -> None:
    if hyper.vocabulary > MOST_VOCABULARY:
        raise BadModelFile(f"{keys.path}: token_embd.weight has {hyper.vocabulary} rows",
                           f"at most {MOST_VOCABULARY} are supported", field="token_embd.weight")
    if hyper.heads % hyper.kv_heads:
        raise keys.bad("attention.head_count_kv", f"is {hyper.kv_heads}, no divisor of {hyper.heads}")
    if hyper.rope_dim != hyper.head_dim or hyper.rope_dim % 2:
        raise keys.bad("rope.dimension_count", f"is {hyper.rope_dim}, expected the even head size {hyper.head_dim}",
                       "heads that are turned in part are not supported")
    if keys.metadata.get(f"{keys.architecture}.attention.causal", True) is not True:
        raise keys.bad("attention.causal", "is false", "such models are not supported")
    if keys.metadata.get(f"{keys.architecture}.attention.value_length", hyper.head_dim) != hyper.head_dim:
        raise keys.bad("attention.value_length", "differs from key_length", "such models are not supported")
    if keys.metadata.get(f"{keys.architecture}.expert_count", 0):
        raise keys.bad("expert_count", "is not 0", "mixtures of experts are not supported")


def global_shapes(hyper: Hyper, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors outside the layers; optional ones only where the file has them."""
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (hyper.vocabulary, hyper.width),
        "output_norm.weight": (hyper.width,),
    }
    if "output.weight" in shapes:
        wanted["output.weight"] = (hyper.vocabulary, hyper.width)
    if "rope_freqs.weight" in shapes:
        wanted["rope_freqs.weight"] = (hyper.rope_dim // 2,)
    return wanted


def layer_shapes(hyper: Hyper) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that every layer must have, names without `blk.N.`."""
    queries, keys = hyper.heads * hyper.head_dim, hyper.kv_heads * hyper.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hyper.width,),
        "attn_q.weight": (queries, hyper.width),
        "attn_k.weight": (keys, hyper.width),
        "attn_v.weight": (keys, hyper.width),
        "attn_output.weight": (hyper.width, queries),
        "ffn_norm.weight": (hyper.width,),
        "ffn_gate.weight": (hyper.feed_forward, hyper.width),
        "ffn_up.weight": (hyper.feed_forward, hyper.width),
        "ffn_down.weight": (hyper.width, hyper.feed_forward),
    }
    if hyper.family.qkv_bias:
        shapes |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if hyper.family.qk_norm:
        shapes |= {"attn_q_norm.weight": (hyper.head_dim,), "attn_k_norm.weight": (hyper.head_dim,)}
    return shapes


def optional_layer_shapes(hyper: Hyper) -> dict[str, tuple[int, ...]]:
    """Tensors that a layer may have: biases of the projections."""
    queries, keys = hyper.heads * hyper.head_dim, hyper.kv_heads * hyper.head_dim
    return {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,),
            "attn_output.bias": (hyper.width,)}
