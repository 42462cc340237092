"""Whatever bytes a header is made of: does the user get an answer or an NvstreamError, and never anything else?"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvstreamd import ggml
from nvstreamd.errors import NvstreamError
from support.examples import examples
from support.shapes import tiny
from support.vocabularies import G
from unit.weights.models import Entry, array, gguf, look, make

FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=examples(300),
                suppress_health_check=list(HealthCheck))
# The tokenizer is another reader's business; without its two thousand bytes mutations hit what is read here.
VOCABULARY = {G + "tokens": [str(number) for number in range(32)]}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A file to write to, a valid model, and the length of its header."""
    directory = tmp_path_factory.mktemp("fuzz")
    good = make(directory / "good.gguf", tiny(width=32, layers=1), vocabulary=VOCABULARY)
    content = good.read_bytes()
    assert look(good).layers == 1
    return directory / "fuzzed.gguf", content, content.index(b"output.weight") + 64


def survive(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        look(path)
    except NvstreamError as error:
        assert error.hint and path.name in str(error) and len(str(error)) < 2000, error
        str(error).encode()


@FUZZ
@given(st.data())
def test_a_mutated_header(target: tuple[Path, bytes, int], data: st.DataObject) -> None:
    path, good, header = target
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        where = data.draw(st.integers(0, header - 8))
        value = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(
            [b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 60), struct.pack("<I", 9), struct.pack("<Q", header)])))
        content[where : where + len(value)] = value
    survive(path, bytes(content))


@FUZZ
@given(st.data())
def test_a_header_with_bytes_added_or_lost(target: tuple[Path, bytes, int], data: st.DataObject) -> None:
    path, good, header = target
    where, lost = data.draw(st.integers(0, header)), data.draw(st.integers(0, 40))
    survive(path, good[:where] + data.draw(st.binary(max_size=40)) + good[where + lost :])


NUMBERS = st.one_of(st.integers(-3, 70), st.sampled_from([1 << 20, 1 << 24, (1 << 31) - 1]))
SCALARS = st.one_of(
    st.booleans(), st.text(max_size=8), NUMBERS.map(lambda n: struct.pack("<Ii", 5, n)),
    st.integers(0, (1 << 64) - 1).map(lambda n: struct.pack("<IQ", 10, n)),
    st.floats(width=32).map(lambda x: struct.pack("<If", 6, x)), st.floats().map(lambda x: struct.pack("<Id", 12, x)),
)
VALUES = st.one_of(
    SCALARS, st.lists(st.text(max_size=3), max_size=3), st.lists(st.integers(0, 9), max_size=3),
    st.builds(array, st.integers(0, 13), st.integers(0, 1 << 63), st.binary(max_size=40)),
)
KEYS = ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "feed_forward_length", "context_length", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
        "rope.scaling.factor", "attention.layer_norm_rms_epsilon", "expert_count",
        "expert_used_count", "expert_feed_forward_length"]  # fmt: skip


@FUZZ
@given(st.sampled_from(["llama", "qwen3moe"]), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
       st.dictionaries(st.sampled_from(["general.alignment", "general.name", "split.count", "split.no",
                                        "split.tensors.count"]), VALUES, max_size=2))
def test_a_model_with_other_values_under_the_keys_that_matter(target: tuple[Path, bytes, int], family: str,
                                                              own: dict[str, object],
                                                              general: dict[str, object]) -> None:
    path, _, _ = target
    metadata = {f"{family}.{key}": value for key, value in own.items()} | general
    source = make(path.with_name("values.gguf"), tiny(family, width=32, layers=1), vocabulary=VOCABULARY,
                  metadata=metadata)
    survive(path, source.read_bytes())


NAMES = st.sampled_from(["token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_q.weight",
                         "blk.00.attn_q.weight", "blk.1.x", "blk.9999.y", "rope_freqs.weight", "x",
                         "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"])
DIMENSIONS = st.lists(st.one_of(st.integers(0, 64), st.sampled_from([1 << 22, 1 << 48, (1 << 64) - 1])), max_size=5)
TABLES = st.lists(st.builds(
    Entry, NAMES, DIMENSIONS, st.sampled_from([kind.id for kind in ggml.SUPPORTED] + [4, 99]),
    st.one_of(st.integers(0, 64).map(lambda n: 32 * n), st.integers(0, (1 << 64) - 1))), max_size=6)


@FUZZ
@given(st.sampled_from(["llama", "qwen3moe"]), TABLES, st.integers(0, 2), st.integers(0, 4096))
def test_a_made_up_tensor_table(target: tuple[Path, bytes, int], family: str, table: list[Entry], layers: int,
                                data: int) -> None:
    path, _, _ = target
    own = {"block_count": layers, "embedding_length": 32, "attention.head_count": 1, "feed_forward_length": 32,
           "context_length": 8, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    metadata = {"general.architecture": family} | {f"{family}.{key}": value for key, value in own.items()}
    survive(path, gguf(metadata, table, data=data))
