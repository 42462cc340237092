"""Which tensors of a file, and which slices of them, make each piece of a model's weights?

Names are GGUF's: `blk.N.` stands before those of layer N. Nothing else in the tree cuts a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from nvstreamd import ggml
from nvstreamd.architectures.keys import MOST_EXPERTS, MOST_LAYERS, MOST_VOCABULARY, Keys
from nvstreamd.errors import BadModelFile
from nvstreamd.pieces import Key, Kind, Piece, Slice

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
CONSTANTS = ("output_norm.weight", "rope_freqs.weight")
# Experts' matrices lie behind each other in one tensor.
EXPERTS = re.compile(r"ffn_(gate|up|down)_exps\.weight", re.ASCII)
# Each is a piece of its own: time and memory go with their number.
MOST_IN_ALL = 1 << 16
LAYER_TENSOR = re.compile(r"blk\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<name>.+)", re.ASCII)
SMALLEST_HEAD_PIECE = 1 << 20
# Rows of the head come in multiples, so that a piece's arithmetic has the same shape as its neighbours'.
HEAD_ROWS = 32
DAMAGED = "the store is damaged: import the model again"

Shapes = Mapping[str, tuple[int, ...]]


def pieces_of(keys: Keys, shapes: Shapes, types: Mapping[str, str]) -> tuple[Piece, ...]:
    """All pieces of a model: its constants, then those that a pass needs, in its order. Raises BadModelFile.

    Behind a layer come its experts.
    """
    layers = _layers(keys, shapes)
    largest = max(sum(_nbytes(shapes[each.tensor], types[each.tensor]) for each in layer.slices) for layer in layers
                  if layer.key.kind is Kind.LAYER)
    name = head_of(shapes)
    for table in (EMBEDDING, name):
        _check_table(keys.path, table, shapes)
    constants = tuple(whole(constant, constant, shapes) for constant in CONSTANTS if constant in shapes)
    row = _nbytes((1, shapes[name][1]), types[name])
    head = head_pieces(name, shapes[name][0], row, largest)
    return (Piece(Key(Kind.CONSTANTS), constants), *layers, *head)


def check(keys: Keys, shapes: Shapes, types: Mapping[str, str], pieces: Sequence[Piece]) -> None:
    """Holds what a store says against its tensors; only the head may be cut otherwise. Raises BadModelFile."""
    wanted = {piece.key: frozenset(piece.slices) for piece in pieces_of(keys, shapes, types)}
    head, row = head_of(shapes), 0
    order = [key for key in wanted if key.kind is not Kind.HEAD]
    order += [Key(Kind.HEAD, number) for number in range(len(pieces) - len(order))]
    for piece, key in zip(pieces, order, strict=False):
        if key.kind is Kind.HEAD:
            row, first = row + sum(each.count for each in piece.slices), row
            right = piece.slices == (Slice(head, head, first, row - first),)
        else:
            right = frozenset(piece.slices) == wanted[key] and len(piece.slices) == len(wanted[key])
        if piece.key != key or not right:
            raise _damaged(keys.path, key)
    if len(pieces) < len(order) or row != shapes[head][0]:
        raise _damaged(keys.path, Key(Kind.HEAD))


def _damaged(path: str, key: Key) -> BadModelFile:
    return BadModelFile(f"{path}: {key.name} is not what the tensors make of it", DAMAGED, field=key.name)


def head_of(shapes: Shapes) -> str:
    """The name of the head's matrix: without one of its own, the embedding's rows (Press and Wolf, 2017)."""
    return HEAD if HEAD in shapes else EMBEDDING


def whole(name: str, tensor: str, shapes: Shapes) -> Slice:
    """All of a tensor."""
    return Slice(name, tensor, 0, shapes[tensor][0])


def head_pieces(name: str, rows: int, row_bytes: int, largest: int) -> list[Piece]:
    """The head in pieces of at most about `largest` bytes, of so many rows of so many bytes in all."""
    step = max(HEAD_ROWS, max(largest, SMALLEST_HEAD_PIECE) // row_bytes // HEAD_ROWS * HEAD_ROWS)
    return [Piece(Key(Kind.HEAD, number), (Slice(name, name, first, min(step, rows - first)),))
            for number, first in enumerate(range(0, rows, step))]


def _layers(keys: Keys, shapes: Shapes) -> list[Piece]:
    """The tensors of each layer, called without `blk.N.`, of which every layer has some, and its experts."""
    if isinstance(keys.get("block_count", None), list):
        raise keys.bad("block_count", "is an array, expected one number")
    count = keys.integer("block_count", MOST_LAYERS)
    layers: list[list[Slice]] = [[] for _ in range(count)]
    experts: list[list[Slice]] = [[] for _ in range(count)]
    for tensor in shapes:
        match = LAYER_TENSOR.fullmatch(tensor)
        if match is not None and int(match["layer"]) < count:
            split = EXPERTS.fullmatch(match["name"]) and len(shapes[tensor]) > 2
            (experts if split else layers)[int(match["layer"])].append(whole(match["name"], tensor, shapes))
    total = sum(found[0].count for found in experts if found)
    if total > MOST_IN_ALL:
        raise BadModelFile(f"{keys.path}: the layers have {total} experts in all",
                           f"at most {MOST_IN_ALL} are supported", field="expert_count")
    pieces: list[Piece] = []
    for number, found in enumerate(layers):
        if not found:
            raise BadModelFile(f"{keys.path}: blk.{number} is missing: no tensor of layer {number}",
                               "the conversion was incomplete", field=f"blk.{number}")
        pieces += [Piece(Key(Kind.LAYER, number), tuple(found)), *_experts(keys.path, number, experts[number])]
    return pieces


def _experts(path: str, layer: int, found: Sequence[Slice]) -> list[Piece]:
    """Each expert of a layer: one slice of every tensor that they lie in, all of which have as many."""
    for each in found:
        if each.count != found[0].count or each.count > MOST_EXPERTS:
            raise BadModelFile(f"{path}: tensor {each.tensor} has {each.count} experts, {found[0].tensor} has "
                               f"{found[0].count}, at most {MOST_EXPERTS} are supported", "convert the model again",
                               field=each.tensor)
    return [Piece(Key(Kind.EXPERT, layer, number), tuple(replace(each, first=number, count=1) for each in found))
            for number in range(found[0].count if found else 0)]


def _check_table(path: str, name: str, shapes: Shapes) -> None:
    shape = shapes.get(name)
    if shape is None:
        raise BadModelFile(f"{path}: tensor {name} is missing", "the conversion was incomplete", field=name)
    if len(shape) != 2 or shape[0] > MOST_VOCABULARY:
        raise BadModelFile(f"{path}: tensor {name} has shape {shape}",
                           f"a matrix of at most {MOST_VOCABULARY} rows is expected", field=f"tensor {name}")


def _nbytes(shape: tuple[int, ...], kind: str) -> int:
    return prod(shape[:-1]) * ggml.BY_NAME[kind].row_bytes(shape[-1])
