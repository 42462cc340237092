"""Do extents bring every tensor's bytes to its place, and are the figures that a user plans with the true ones?"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd import ggml
from nvstreamd.architectures.names import head_pieces, pieces_of
from nvstreamd.architectures.registry import keys_of
from nvstreamd.ggml import GgmlType
from nvstreamd.pieces import Key, Kind, Slice
from nvstreamd.weights.packed import gguf as reader
from nvstreamd.weights.packed.gguf import Tensor
from nvstreamd.weights.packed.manifest import (
    ALIGNMENT,
    Manifest,
    Segment,
    in_place,
    segment_in_place,
    shapes_and_types,
    sliced,
)
from support.shapes import FAMILIES, TINY, tiny
from support.vocabularies import synthetic_vocabulary
from unit.weights.models import look, make, opened

VOCABULARY = len(synthetic_vocabulary()["tokenizer.ggml.tokens"])  # type: ignore[arg-type]


def up(value: int) -> int:
    return -(-value // ALIGNMENT) * ALIGNMENT


def fill(segment: Segment, fds: list[int]) -> bytearray:
    """The segment's slot, filled as the mover would."""
    slot = bytearray(b"\xee" * segment.nbytes)
    for extent in segment.extents:
        data = os.pread(fds[extent.file], extent.length, extent.offset)
        slot[extent.target : extent.target + len(data)] = data
    return slot


def cut(gguf: reader.Gguf) -> Manifest:
    """The manifest of a file in the pieces that its family wants."""
    return in_place(gguf, pieces_of(keys_of(gguf.paths[0], gguf.metadata), *shapes_and_types(gguf)))


def check(manifest: Manifest, tensors: dict[str, Tensor], sizes: list[int], fds: list[int]) -> None:
    for segment in (manifest.constants, *manifest.segments):
        filled = 0
        for extent in segment.extents:
            assert extent.target == filled, "slots have no gaps"
            assert not any(value % ALIGNMENT for value in (extent.offset, extent.length, extent.target))
            assert extent.length > 0 and extent.offset + extent.length <= up(sizes[extent.file])
            filled += extent.length
        assert filled == segment.nbytes == segment.read_bytes
        slot = fill(segment, fds)
        for place in segment.tensors:
            tensor = tensors[place.slice.tensor]
            skip = place.slice.first * (tensor.nbytes // tensor.shape[0])
            assert slot[place.offset : place.offset + place.nbytes] == os.pread(
                fds[tensor.file], place.nbytes, tensor.offset + skip), place.name


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", [ggml.F16, ggml.Q4_K, ggml.MXFP4], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_at_its_place(tmp_path: Path, family: str, kind: GgmlType, parts: int) -> None:
    path = make(tmp_path / "model.gguf", tiny(family, width=256), type=kind, parts=parts, rope_freqs=[1.0] * 32)
    with opened(path) as files:
        gguf = reader.read(files)
        check(cut(gguf), gguf.tensors, [file.size for file in files], [file.fd for file in files])


@pytest.mark.parametrize("loose", [0, 1, 31, 4064])
def test_a_file_that_ends_with_its_last_weight_reads_past_its_end_only_to_the_page(tmp_path: Path, loose: int) -> None:
    """Whoever fetched a model without the padding at its end, or with something behind it, loses nothing."""
    path = make(tmp_path / "model.gguf")
    with opened(path) as files:
        end = max(tensor.offset + tensor.nbytes for tensor in reader.read(files).tensors.values())
    os.truncate(path, end + loose)
    with opened(path) as files:
        gguf = reader.read(files)
        check(cut(gguf), gguf.tensors, [file.size for file in files], [file.fd for file in files])
        last = max(e.offset + e.length for s in cut(gguf).segments for e in s.extents)
        assert end <= last <= up(end)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_all_rows_in_order(tmp_path: Path, tied: bool) -> None:
    path = make(tmp_path / "model.gguf", tiny(tied=tied), vocabulary=synthetic_vocabulary(20_000))
    with opened(path) as files:
        manifest = cut(reader.read(files))
    name = "token_embd.weight" if tied else "output.weight"
    slices = [placed.slice for segment in manifest.segments if segment.key.kind is Kind.HEAD
              for placed in segment.tensors]
    assert len(slices) == 3
    assert all((piece.name, piece.tensor) == (name, name) for piece in slices)
    ends = [piece.first + piece.count for piece in slices]
    assert [piece.first for piece in slices] == [0, *ends[:-1]]
    assert ends[-1] == 20_000


@settings(derandomize=True, deadline=None, database=None)
@given(st.integers(1, 300_000), st.integers(1, 64), st.sampled_from(ggml.SUPPORTED), st.integers(0, 1 << 26))
def test_head_pieces_cover_every_row_once(rows: int, blocks: int, kind: GgmlType, largest: int) -> None:
    row = kind.row_bytes(blocks * kind.block_length)
    slices = [piece.slices[0] for piece in head_pieces("output.weight", rows, row, largest)]
    assert slices[0].first == 0 and sum(piece.count for piece in slices) == rows
    for piece, after in pairwise(slices):
        assert after.first == piece.first + piece.count and after.first % 32 == 0
    assert max(piece.count for piece in slices) * row <= max(largest, 1 << 20, 32 * row)


def test_an_expert_is_a_slice() -> None:
    """Of [experts, rows, columns] one matrix, read alone; rows of a matrix are one, too."""
    tensor = Tensor("blk.0.ffn_up_exps.weight", ggml.Q4_0, (8, 64, 256), 0, 4096, 8 * 64 * 144)
    expert = sliced(tensor, Slice("ffn_up.weight", tensor.name, 3, 1))
    assert (expert.name, expert.shape) == ("ffn_up.weight", (64, 256))
    assert (expert.offset, expert.nbytes) == (4096 + 3 * 64 * 144, 64 * 144)
    rows = sliced(Tensor("x", ggml.F16, (100, 32), 1, 0, 6400), Slice("x", "x", 32, 8))
    assert (rows.shape, rows.offset, rows.nbytes) == ((8, 32), 32 * 64, 8 * 64)


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(1, 4000)), min_size=1, max_size=20))
def test_no_byte_is_read_twice_for_a_segment(gaps: list[tuple[int, int, int]]) -> None:
    ends, tensors = [0, 0, 0], []
    for number, (file, gap, blocks) in enumerate(gaps):
        offset = ends[file] + 32 * gap
        tensors.append(Tensor(str(number), ggml.F32, (8 * blocks,), file, offset, 32 * blocks))
        ends[file] = offset + 32 * blocks
    segment = segment_in_place(
        Key(Kind.LAYER), [(Slice(each.name, each.name, 0, each.shape[0]), each) for each in tensors])
    for before, after in pairwise(sorted(segment.extents, key=lambda e: (e.file, e.offset))):
        assert before.file < after.file or before.offset + before.length < after.offset
    assert segment.nbytes == sum(extent.length for extent in segment.extents)
    assert sorted(int(place.name) for place in segment.tensors) == list(range(len(gaps)))


def test_the_figures_of_a_model_worked_out_by_hand(tmp_path: Path) -> None:
    """Width 64, 4 heads and 2 KV heads of 16, feed-forward 128, F16: what a planner would jot down."""
    path = make(tmp_path / "model.gguf", TINY["llama"])
    matrices = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64)
    layer = matrices + 2 * 64 * 4
    head = 2 * 64 * VOCABULARY
    facts = look(path)
    assert facts.bytes_per_token == 2 * layer + head
    assert facts.weight_bytes == 2 * layer + 2 * head + 64 * 4
    assert dict(facts.bytes_by_type) == {"F16": 2 * matrices + 2 * head, "F32": (2 * 2 + 1) * 64 * 4}
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert facts.vocabulary_size == VOCABULARY
    begin = _data_of(path)
    spans = [(begin + head + layer * n, begin + head + layer * (n + 1)) for n in (0, 1)]
    constant = (begin + head + 2 * layer, begin + head + 2 * layer + 256)
    spans.append((constant[1], constant[1] + head))
    sizes = [up(end) - start // ALIGNMENT * ALIGNMENT for start, end in spans]
    constants = up(constant[1]) - constant[0] // ALIGNMENT * ALIGNMENT
    assert facts.minimum_budget == constants + 2 * max(sizes)


def _data_of(path: Path) -> int:
    with opened(path) as files:
        return reader.read_header(files[0])[2]


def test_layers_with_a_window_keep_no_more_than_that(tmp_path: Path) -> None:
    """Six of seven see 40 tokens of 512. Counted as if they kept all, a KV cache seemed to be seven times as large."""
    shape = tiny("gemma3", layers=7)
    layer = 2 * shape.kv_heads * shape.head_dim * 2
    facts = look(make(tmp_path / "model.gguf", shape))
    assert facts.kv_bytes_per_token == -(-layer * (shape.context + 6 * shape.window) // shape.context)
    assert facts.kv_bytes_per_token < 2 * layer
