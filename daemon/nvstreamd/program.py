"""Which words say what a model computes? Pure data that architectures write and devices read.

There are no addresses and no arrays here: activations are values by number, weights are tensors by name. The meaning of
each step, to the bit, is kernels/ARITHMETIC.md's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from nvstreamd.pieces import Key


@dataclass(frozen=True, slots=True)
class Value:
    """Activations [rows, columns] float32, wherever the device keeps them. Values of one id share their memory."""

    id: int
    columns: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """The tensor `name` [rows, columns]; `bias` names the vector [rows] that is added to each product."""

    name: str
    rows: int
    columns: int
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm by the vector `weight`: x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, 2019)."""

    weight: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of attention: `queries` heads of `dim` elements share `keys` heads of keys and values."""

    queries: int
    keys: int
    dim: int


@dataclass(frozen=True, slots=True)
class Yarn:
    """Scaling by the wavelength of a pair (Peng et al., "YaRN", 2023, section 3.2).

    Pairs that turn more than `fast` times in the `context` tokens of the training keep their frequency, those that turn
    less than `slow` times are scaled, others in between. What is turned is multiplied by `magnitude`.
    """

    context: int
    fast: float
    slow: float
    magnitude: float


@dataclass(frozen=True, slots=True)
class Rope:
    """How heads of `dim` elements are turned by their token's position (Su et al., RoFormer, section 3.2).

    Pair i turns by position * scale * base^(-2i / dim), divided by element i of the vector `factors` where there is one
    (Llama 3's rope_freqs). Pairs are (0, 1), (2, 3).. where `interleaved`, else (0, dim / 2), (1, dim / 2 + 1)..
    With `yarn` pairs that turn fast are not scaled.
    """

    dim: int
    base: float
    scale: float
    interleaved: bool
    factors: str | None = None
    yarn: Yarn | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """out[i] = x times weights[i], x being normed first where `norm` is given."""

    x: Value
    norm: Norm | None
    weights: tuple[Matrix, ...]
    out: tuple[Value, ...]


class Activation(StrEnum):
    """What becomes of a gate: x / (1 + e^-x), or the tanh form of GELU (Hendrycks and Gimpel, 2016)."""

    SILU = "silu"
    GELU = "gelu"


@dataclass(frozen=True, slots=True)
class Gated:
    """out = activation(h times gate) * (h times up), h being the norm of x (Shazeer, "GLU variants", 2020)."""

    x: Value
    norm: Norm
    gate: Matrix
    up: Matrix
    out: Value
    activation: Activation = Activation.SILU


@dataclass(frozen=True, slots=True)
class Add:
    """x += h times weight."""

    x: Value
    h: Value
    weight: Matrix


@dataclass(frozen=True, slots=True)
class AddNormed:
    """x += norm of h."""

    x: Value
    h: Value
    norm: Norm


@dataclass(frozen=True, slots=True)
class Attend:
    """out = causal attention of the heads of q over the keys and values of their sequence, which are in `group`.

    `layer` counts within the group, whose window is how many tokens a row sees, its own among them. q and k are normed
    head by head where `norms` gives both, then turned; k and v are stored before. All three may be overwritten. Scores
    are multiplied by `scale`, 1 / sqrt(dim) where it is None.
    """

    q: Value
    k: Value
    v: Value
    out: Value
    heads: Heads
    rope: Rope
    norms: tuple[Norm, Norm] | None
    group: int
    layer: int
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Columns `first` on of the scores, of those rows alone whose scores are wanted = norm of x, times weight."""

    x: Value
    norm: Norm
    weight: Matrix
    first: int


@dataclass(frozen=True, slots=True)
class Route:
    """h = norm of x; its row goes to the experts that h times `router` [experts, columns] scores highest.

    `weights` has a column for each of them, by rank: their softmax over all experts, divided by its own sum
    (Shazeer et al., "Outrageously large neural networks", 2017). Which they are is for the device to say (`routing`).
    """

    x: Value
    norm: Norm
    router: Matrix
    h: Value
    weights: Value


@dataclass(frozen=True, slots=True)
class Expert:
    """Of some rows at some ranks: parts[row, rank] = (activation(h times gate) * (h times up)) times down.

    `parts` has as many times the columns of `down`'s rows as there are ranks.
    """

    h: Value
    gate: Matrix
    up: Matrix
    down: Matrix
    parts: Value
    activation: Activation = Activation.SILU


@dataclass(frozen=True, slots=True)
class Mix:
    """x += the sum of weights[rank] * parts[rank], in the order of the ranks."""

    x: Value
    weights: Value
    parts: Value


Step = Project | Gated | Add | AddNormed | Attend | Score | Route | Expert | Mix


@dataclass(frozen=True, slots=True)
class Program:
    """The work of a piece of weights on the hidden state: steps, one after the other."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Experts:
    """Pieces of which each row of a layer needs `used`: `program` is one Expert, for any of them; then comes `mix`."""

    keys: tuple[Key, ...]
    used: int
    program: Program
    mix: Program


@dataclass(frozen=True, slots=True)
class Stage:
    """A piece of weights, and what is computed with it; `experts` follow it where its program ends in Route."""

    key: Key
    program: Program
    experts: Experts | None = None

    @property
    def programs(self) -> tuple[Program, ...]:
        """All its programs."""
        return (self.program,) if self.experts is None else (self.program, self.experts.program, self.experts.mix)


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers whose keys and values are kept alike, page by page: of `layers` layers of `heads` of `dim`.

    All tokens are kept, or the last `window` of them, which are what a token sees.
    """

    layers: int
    heads: int
    dim: int
    window: int | None = None

    @property
    def elements(self) -> int:
        """Elements of keys and values that a token leaves in all layers."""
        return 2 * self.layers * self.heads * self.dim


@dataclass(frozen=True, slots=True)
class Model:
    """All that is computed between a token's embedding and its scores, in order.

    The first hidden state is the embedding times `embedding_scale`.
    """

    hidden: Value
    vocabulary: int
    kv: tuple[KvGroup, ...]
    stages: tuple[Stage, ...]
    embedding_scale: float = 1.0


def values_of(step: Step) -> tuple[Value, ...]:
    """The values that a step reads or writes."""
    match step:
        case Project():
            return (step.x, *step.out)
        case Gated():
            return (step.x, step.out)
        case Add() | AddNormed():
            return (step.x, step.h)
        case Attend():
            return (step.q, step.k, step.v, step.out)
        case Score():
            return (step.x,)
        case Route():
            return (step.x, step.h, step.weights)
        case Expert():
            return (step.h, step.parts)
        case Mix():
            return (step.x, step.weights, step.parts)


def columns_by_id(programs: Iterable[Program]) -> dict[int, int]:
    """{value id: the most columns it ever has}: what a device needs room for, a row."""
    most: dict[int, int] = {}
    for program in programs:
        for step in program.steps:
            for value in values_of(step):
                most[value.id] = max(most.get(value.id, 0), value.columns)
    return most
