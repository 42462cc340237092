"""Does a user whose file holds NaN or infinity read which tensor it is, wherever it lies?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from nvstreamd.engine.describe import read_model
from nvstreamd.engine.load import sizes_of
from nvstreamd.engine.scheduler import Work
from nvstreamd.errors import BadModelFile
from nvstreamd.weights.packed import gguf as reader
from nvstreamd.weights.packed.files import open_all
from support.our_logits import first_pages, loaded, sequence
from support.random_gguf import Options, write
from support.shapes import tiny

TOKENS = [7, 3, 9, 3]


def damaged(path: Path, tensor: str, row: int, family: str = "llama") -> Path:
    """A model in which the first weight of a row is NaN; of experts' tensors, of an expert."""
    write(path, tiny(family, layers=2), Options(type=reader.BY_ID[1]))
    with ExitStack() as stack:
        found = reader.read(open_all([path], stack)).tensors[tensor]
    width = found.type.row_bytes(1)
    with path.open("r+b") as file:
        file.seek(found.offset + row * found.nbytes // found.shape[0])
        file.write(np.array([np.nan], np.float16 if width == 2 else np.float32).tobytes())
    return path


@pytest.mark.parametrize(("tensor", "row"), [
    ("blk.1.ffn_down.weight", 5), ("output_norm.weight", 0), ("output.weight", 40), ("token_embd.weight", 9),
])
def test_the_tensor_is_named(tmp_path: Path, tensor: str, row: int) -> None:
    with loaded([damaged(tmp_path / "model.gguf", tensor, row)]) as model:
        with pytest.raises(BadModelFile, match=tensor) as error:
            model.runner.run([Work(sequence(model, TOKENS, first_pages(len(TOKENS))), 0, len(TOKENS))])
        assert "model.gguf" in str(error.value) and "NaN" in str(error.value) and error.value.hint
        assert ("row 9" in str(error.value)) == (tensor == "token_embd.weight")


def test_a_damaged_row_of_the_embedding_harms_only_who_uses_it(tmp_path: Path) -> None:
    with loaded([damaged(tmp_path / "model.gguf", "token_embd.weight", 200)]) as model:
        scores = model.runner.run([Work(sequence(model, TOKENS, first_pages(len(TOKENS))), 0, len(TOKENS))]).scores
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(("tensor", "row"), [
    ("blk.0.ffn_gate_inp.weight", 3), ("blk.1.ffn_up_exps.weight", 0), ("blk.0.ffn_down_exps.weight", 7)])
def test_the_router_and_the_expert_are_named(tmp_path: Path, tensor: str, row: int) -> None:
    """So many tokens that every expert serves some, through two slots of the cache."""
    path, tokens = damaged(tmp_path / "model.gguf", tensor, row, "qwen3moe"), list(range(40, 80))
    with ExitStack() as stack:
        smallest = sizes_of(read_model(open_all([path], stack))).least
    with loaded([path], budget=smallest) as model:
        with pytest.raises(BadModelFile, match=tensor) as error:
            model.runner.run([Work(sequence(model, tokens, first_pages(len(tokens))), 0, len(tokens))])
        assert "NaN" in str(error.value) and (f"expert {row}," in str(error.value)) == ("exps" in tensor)


def test_a_damaged_expert_harms_only_whose_tokens_go_to_it(tmp_path: Path) -> None:
    with loaded([damaged(tmp_path / "model.gguf", "blk.1.ffn_up_exps.weight", 2, "qwen3moe")]) as model:
        assert model.runner.routed is not None
        seen: list[set[int]] = []
        model.runner.routed.on_route = lambda _, experts: seen.append(set(experts.ravel().tolist()))
        served, harmed = 0, 0
        for token in range(16):
            seen.clear()
            try:
                model.runner.run([Work(sequence(model, [token], [0]), 0, 1)])
                served += 1
                assert 2 not in seen[1]
            except BadModelFile:
                harmed += 1
                assert 2 in seen[1]
        assert served and harmed
