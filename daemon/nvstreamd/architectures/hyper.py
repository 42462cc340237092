"""Which numbers define a decoder? Read from a file's keys and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal

from nvstreamd.architectures.keys import MOST_CONTEXT, MOST_EXPERTS, MOST_LAYERS, MOST_VOCABULARY, MOST_WIDTH, Keys
from nvstreamd.architectures.names import EMBEDDING
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.errors import BadModelFile
from nvstreamd.program import Heads, Rope, Yarn

FACTORS = "rope_freqs.weight"
DIGITS = Context(prec=50)


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyperparameters of a decoder. Widths count elements, `context`, `vocabulary` and `window` tokens.

    `rope_factors` names the vector that frequencies are divided by, where the file has one. `window` is how many tokens
    the layers see that do not see all; `window_rope_base` is those layers' own. `feed_forward` is an expert's where
    there are `experts`, of which `experts_used` serve a row.
    """

    layers: int
    width: int
    heads: Heads
    feed_forward: int
    vocabulary: int
    context: int
    epsilon: float
    rope_base: float
    rope_scale: float
    rope_factors: str | None
    yarn: Yarn | None = None
    window: int | None = None
    window_rope_base: float = 10000.0
    experts: int = 0
    experts_used: int = 0

    def rope(self, *, interleaved: bool) -> Rope:
        """How heads are turned, pairs lying as the family has them."""
        return Rope(self.heads.dim, self.rope_base, self.rope_scale, interleaved, self.rope_factors, self.yarn)

    def window_rope(self, *, interleaved: bool) -> Rope:
        """How the heads of layers with a window are turned: never scaled, since they see no distance that is new."""
        return Rope(self.heads.dim, self.window_rope_base, 1.0, interleaved)


def read(keys: Keys, tensors: Tensors, *, windowed: bool, routed: bool) -> Hyper:
    """The hyperparameters of a file; window and experts only of a family that has them.

    Raises BadModelFile naming the key.
    """
    if not routed and keys.get("expert_count", 0):
        raise keys.bad("expert_count", "is not 0", "this family has no experts")
    experts = keys.integer("expert_count", MOST_EXPERTS) if routed else 0
    heads = keys.integer("attention.head_count", MOST_WIDTH)
    width = keys.integer("embedding_length", MOST_WIDTH)
    dim = keys.integer("attention.key_length", MOST_WIDTH, max(1, width // heads))
    hyper = Hyper(
        layers=keys.integer("block_count", MOST_LAYERS),
        width=width,
        heads=Heads(heads, keys.integer("attention.head_count_kv", heads, heads), dim),
        feed_forward=keys.integer("expert_feed_forward_length" if routed else "feed_forward_length", MOST_WIDTH),
        vocabulary=tensors.rows(EMBEDDING),
        context=keys.integer("context_length", MOST_CONTEXT),
        epsilon=keys.real("attention.layer_norm_rms_epsilon", 1e-5),
        rope_base=keys.real("rope.freq_base", 10000.0),
        rope_scale=_rope_scale(keys),
        rope_factors=FACTORS if tensors.has(FACTORS) else None,
        yarn=_yarn(keys),
        window=keys.integer("attention.sliding_window", MOST_CONTEXT) if windowed and keys.has(
            "attention.sliding_window") else None,
        window_rope_base=keys.real("rope.freq_base_swa", 10000.0),
        experts=experts, experts_used=keys.integer("expert_used_count", experts) if routed else 0,
    )
    _check(keys, hyper)
    return hyper


def _rope_scale(keys: Keys) -> float:
    """The factor of positions: 1, or 1/factor for linear scaling and YaRN; a factor without a type means linear."""
    if keys.has("rope.scale_linear"):
        raise keys.bad("rope.scale_linear", "is a key of old files", "convert the model again")
    kind = keys.get("rope.scaling.type", "linear" if keys.has("rope.scaling.factor") else "none")
    if kind not in ("none", "linear", "yarn"):
        raise keys.bad("rope.scaling.type", f"is {str(kind)[:60]!r}",
                       "none, linear, yarn and Llama 3's rope_freqs are supported")
    return 1.0 / keys.real("rope.scaling.factor", 1.0) if kind != "none" else 1.0


def _yarn(keys: Keys) -> Yarn | None:
    """YaRN's numbers where a file has it; those that it may leave out are the paper's."""
    if keys.get("rope.scaling.type", "none") != "yarn":
        return None
    base = keys.real("rope.freq_base", 10000.0)
    if base <= 1:
        raise keys.bad("rope.freq_base", f"is {base}, YaRN wants more than 1")
    factor = keys.real("rope.scaling.factor", 1.0)
    spread = 1.0 + 0.1 * float(DIGITS.ln(Decimal(max(1.0, factor))))
    return Yarn(
        context=keys.integer("rope.scaling.original_context_length", MOST_CONTEXT,
                             keys.integer("context_length", MOST_CONTEXT)),
        fast=keys.real("rope.scaling.yarn_beta_fast", 32.0), slow=keys.real("rope.scaling.yarn_beta_slow", 1.0),
        magnitude=spread * keys.real("rope.scaling.attn_factor", 1.0))


def _check(keys: Keys, hyper: Hyper) -> None:
    if hyper.experts_used * max(hyper.width, hyper.feed_forward) > MOST_WIDTH:
        raise keys.bad("expert_used_count", f"is {hyper.experts_used}: what they find of a row is more than "
                       f"{MOST_WIDTH} numbers", "such models are not supported")
    if hyper.vocabulary > MOST_VOCABULARY:
        raise BadModelFile(f"{keys.path}: {EMBEDDING} has {hyper.vocabulary} rows",
                           f"at most {MOST_VOCABULARY} are supported", field=EMBEDDING)
    heads = hyper.heads
    if heads.queries % heads.keys:
        raise keys.bad("attention.head_count_kv", f"is {heads.keys}, no divisor of {heads.queries}")
    turned = keys.integer("rope.dimension_count", heads.dim, heads.dim)
    if turned != heads.dim or turned % 2:
        raise keys.bad("rope.dimension_count", f"is {turned}, expected the even head size {heads.dim}",
                       "heads that are turned in part are not supported")
    if keys.get("attention.causal", True) is not True:
        raise keys.bad("attention.causal", "is false", "such models are not supported")
    if keys.get("attention.value_length", heads.dim) != heads.dim:
        raise keys.bad("attention.value_length", "differs from key_length", "such models are not supported")
