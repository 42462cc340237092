"""Which family is behind a file's general.architecture, and what does a model of it compute?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from nvstreamd.architectures.families.gemma3 import gemma3, gemma3_kv
from nvstreamd.architectures.families.llama import llama
from nvstreamd.architectures.families.qwen2 import qwen2
from nvstreamd.architectures.families.qwen3 import qwen3
from nvstreamd.architectures.families.qwen3moe import qwen3moe
from nvstreamd.architectures.hyper import FACTORS, Hyper, read
from nvstreamd.architectures.keys import Keys
from nvstreamd.architectures.names import EMBEDDING, head_of
from nvstreamd.architectures.tensors import Tensors
from nvstreamd.architectures.values import Values
from nvstreamd.errors import BadModelFile
from nvstreamd.pieces import Key, Kind, Piece
from nvstreamd.program import Experts, KvGroup, Matrix, Model, Norm, Program, Route, Score, Stage, Step


def every_token(hyper: Hyper) -> tuple[KvGroup, ...]:
    """All layers keep all tokens."""
    return (KvGroup(hyper.layers, hyper.heads.keys, hyper.heads.dim),)


@dataclass(frozen=True, slots=True)
class Family:
    """The steps of a layer by its number, how keys and values are kept, and what embeddings are multiplied by.

    Of one that is not `windowed` a file's window is not applied, as in llama.cpp. One that is `routed` has experts.
    """

    layer: Callable[[Hyper, Values, Tensors, int], tuple[Step, ...]]
    kv: Callable[[Hyper], tuple[KvGroup, ...]] = every_token
    embedding_scale: Callable[[Hyper], float] = lambda _: 1.0
    windowed: bool = False
    routed: bool = False


FAMILIES: dict[str, Family] = {
    "gemma3": Family(gemma3, gemma3_kv, lambda hyper: sqrt(hyper.width), windowed=True),
    "llama": Family(llama),
    "mistral": Family(llama),
    "qwen2": Family(qwen2),
    "qwen3": Family(qwen3),
    "qwen3moe": Family(qwen3moe, routed=True),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's numbers and what it computes."""

    name: str
    hyper: Hyper
    model: Model


def keys_of(path: str, metadata: Mapping[str, object]) -> Keys:
    """The keys of a file whose family is known. Raises BadModelFile."""
    keys = Keys(path, metadata)
    if not isinstance(keys.architecture, str) or keys.architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise BadModelFile(f"{path}: general.architecture is {str(keys.architecture)[:60]!r}", f"supported: {known}",
                           field="general.architecture")
    return keys


def architecture_of(keys: Keys, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str],
                    pieces: Sequence[Piece]) -> Architecture:
    """What the model computes with its pieces, which `names` has cut or checked.

    Raises BadModelFile naming the key or the tensor.
    """
    tensors = Tensors(keys.path, shapes, types)
    name = str(keys.architecture)
    family = FAMILIES[name]
    hyper = read(keys, tensors, windowed=family.windowed, routed=family.routed)
    output_norm, output = _outside(hyper, tensors)
    layers = [_stage(number, family.layer(hyper, Values(hyper.width), tensors.layer(number), number))
              for number in range(hyper.layers)]
    tensors.check_all_asked(name)
    head = [piece for piece in pieces if piece.key.kind is Kind.HEAD]
    return Architecture(name, hyper, Model(
        Values(hyper.width).hidden, hyper.vocabulary, family.kv(hyper),
        (*layers, *_head(hyper, output_norm, output, head)), family.embedding_scale(hyper)))


def _stage(layer: int, steps: tuple[Step, ...]) -> Stage:
    """A layer's stage; behind its router are what any of the experts does, and what is done with all of them."""
    key = Key(Kind.LAYER, layer)
    for number, step in enumerate(steps, start=1):
        if isinstance(step, Route):
            experts = tuple(Key(Kind.EXPERT, layer, each) for each in range(step.router.rows))
            return Stage(key, Program(steps[:number]), Experts(
                experts, step.weights.columns, Program(steps[number : number + 1]), Program(steps[number + 1 :])))
    return Stage(key, Program(steps))


def _outside(hyper: Hyper, tensors: Tensors) -> tuple[Norm, str]:
    """Asks for the tensors outside the layers; the norm before the head, and the name of the head's matrix."""
    tensors.matrix(EMBEDDING.removesuffix(".weight"), hyper.vocabulary, hyper.width)
    if hyper.rope_factors is not None:
        tensors.vector(FACTORS, hyper.heads.dim // 2)
    output = head_of(tensors.shapes)
    tensors.matrix(output.removesuffix(".weight"), hyper.vocabulary, hyper.width)
    return tensors.norm("output_norm", hyper.width, hyper.epsilon), output


def _head(hyper: Hyper, norm: Norm, output: str, pieces: Sequence[Piece]) -> list[Stage]:
    x = Values(hyper.width).hidden
    return [Stage(piece.key, Program((Score(x, norm, Matrix(output, rows.count, hyper.width), rows.first),)))
            for piece in pieces for rows in piece.slices]
