"""Does each token get its own row, from whatever file and type the table is?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvstreamd import ggml
from nvstreamd.errors import ModelChanged
from nvstreamd.weights.flow.embedding import EmbeddingRows
from nvstreamd.weights.packed import gguf
from support.shapes import tiny
from unit.weights.models import make, model_at, opened


@pytest.mark.parametrize("kind", [ggml.F32, ggml.F16, ggml.Q8_0, ggml.Q6_K], ids=lambda kind: kind.name)
def test_rows_come_in_the_order_of_the_tokens(tmp_path: Path, kind: ggml.GgmlType) -> None:
    path = make(tmp_path / "model.gguf", tiny(width=256), type=kind)
    with opened(path) as files:
        tensor = gguf.read(files).tensors["token_embd.weight"]
    size = kind.row_bytes(256)
    table = path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    tokens = [0, 5, 5, tensor.shape[0] - 1, 1, 0]
    with model_at(path) as model:
        packed = EmbeddingRows(model.manifest.embedding, model.data).fetch(tokens)
        assert packed == b"".join(table[size * token : size * (token + 1)] for token in tokens)
        assert EmbeddingRows(model.manifest.embedding, model.data).fetch([]) == b""


def test_a_row_that_is_gone_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "model.gguf")
    with model_at(path) as model:
        rows = EmbeddingRows(model.manifest.embedding, model.data)
        os.truncate(path, model.manifest.embedding.pieces[0].offset + 1)
        with pytest.raises(ModelChanged, match=r"model\.gguf.*token 7") as error:
            rows.fetch([7])
    assert error.value.hint
