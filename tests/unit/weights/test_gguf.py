"""Does the reader find every tensor and every key of files that llama.cpp's own writer would call good?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType

from nvstreamd import ggml
from nvstreamd.errors import BadModelFile, NotFound
from nvstreamd.weights.packed import gguf
from support.shapes import FAMILIES, TINY, tiny
from unit.weights.models import look, make, opened, refusal


def read(path: Path) -> gguf.Gguf:
    with opened(path) as files:
        return gguf.read(files)


@pytest.mark.parametrize("kind", ggml.SUPPORTED, ids=lambda kind: kind.name)
def test_every_type_lies_where_the_reference_reader_finds_it(tmp_path: Path, kind: ggml.GgmlType) -> None:
    path = make(tmp_path / "model.gguf", tiny(width=256), type=kind)
    ours = read(path).tensors
    reference = {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}
    assert ours.keys() == reference.keys()
    for name, tensor in ours.items():
        theirs = reference[name]
        assert (tensor.offset, tensor.nbytes) == (theirs.data_offset, theirs.n_bytes)
        assert tensor.shape[::-1] == tuple(theirs.shape)
        assert tensor.type.name == GGMLQuantizationType(theirs.tensor_type).name


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_version_is_described(tmp_path: Path, family: str, version: int) -> None:
    facts = look(make(tmp_path / "model.gguf", TINY[family], version=version))
    assert facts.layers == 2 and facts.context_length == 512
    assert facts.architecture == ("llama" if family == "mistral" else family)


def test_metadata_is_what_the_reference_reader_reads(tmp_path: Path) -> None:
    path = make(tmp_path / "model.gguf")
    ours = read(path).metadata
    for key, field in GGUFReader(str(path)).fields.items():
        if not key.startswith("GGUF."):
            assert np.array_equal(np.asarray(ours[key]), np.asarray(field.contents())), key


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_the_alignment_that_the_file_states_is_used(tmp_path: Path, alignment: int) -> None:
    path = make(tmp_path / "model.gguf", alignment=alignment)
    found = {name: tensor.offset for name, tensor in read(path).tensors.items()}
    assert found == {tensor.name: tensor.data_offset for tensor in GGUFReader(str(path)).tensors}


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_split_model_has_the_tensors_of_the_whole(tmp_path: Path, parts: int) -> None:
    whole = read(make(tmp_path / "whole.gguf"))
    first = make(tmp_path / "split.gguf", parts=parts)
    split = read(first)
    assert {name: (t.shape, t.type) for name, t in split.tensors.items()} == {
        name: (t.shape, t.type) for name, t in whole.tensors.items()}
    assert {tensor.file for tensor in split.tensors.values()} == set(range(parts))
    assert look(first).weight_bytes == look(tmp_path / "whole.gguf").weight_bytes


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = make(tmp_path / "split.gguf", parts=3)
    gone = tmp_path / "split-00002-of-00003.gguf"
    gone.unlink()
    with pytest.raises(NotFound) as refused:
        look(first)
    assert str(gone) in str(refused.value) and refused.value.hint


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "split.gguf", parts=2)
    alone = first.rename(tmp_path / "renamed.gguf")
    refusal(alone, BadModelFile, "split.count", "is 2")


def test_swapped_parts_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "split.gguf", parts=3)
    second, third = (tmp_path / f"split-0000{number}-of-00003.gguf" for number in (2, 3))
    second.rename(tmp_path / "x")
    third.rename(second)
    (tmp_path / "x").rename(third)
    with pytest.raises(BadModelFile, match=r"split-00002.*split\.no"):
        look(first)


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "split.gguf", parts=2)
    make(tmp_path / "other.gguf", tiny(layers=3), parts=2)
    (tmp_path / "other-00002-of-00002.gguf").replace(tmp_path / "split-00002-of-00002.gguf")
    refusal(first, BadModelFile)


@pytest.mark.parametrize("name", ["m-00002-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-00000.gguf",
                                  "m-00001-of-00254.gguf"])
def test_only_the_first_part_names_a_split_model(tmp_path: Path, name: str) -> None:
    refusal(tmp_path / name, BadModelFile, "part")
