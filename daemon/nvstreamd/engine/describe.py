"""What does a model need? Told from its header alone; imports no torch, so that it answers in a blink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvstream.v1.models_pb2 import MODEL_FORMAT_GGUF, MODEL_FORMAT_PACKED, ModelFacts
from nvstreamd.architectures.hyper import Hyper, parse
from nvstreamd.architectures.registry import FAMILIES
from nvstreamd.weights import gguf, store
from nvstreamd.weights.drive_files import at_home
from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.manifest import Manifest, in_place
from nvstreamd.weights.placement import minimum_budget
from nvstreamd.weights.stored import FIRST_PART

KV_BYTES_PER_ELEMENT = 2


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's manifest and hyperparameters; `data` are the files its extents count."""

    manifest: Manifest
    hyper: Hyper
    data: tuple[OpenFile, ...]


def read_model(files: Sequence[OpenFile]) -> ModelFile:
    """Reads GGUF parts, or a packed store's manifest, header and parts. Raises BadModelFile."""
    if Path(files[0].path).name == store.MANIFEST_NAME:
        manifest = store.read(files)
        data = tuple(at_home(file, home) for file, home in
                     zip(files[FIRST_PART:], manifest.homes, strict=True))
    else:
        manifest = in_place(gguf.read(list(files)))
        data = tuple(files)
    hyper = parse(files[0].path, manifest.metadata, manifest.shapes, FAMILIES)
    return ModelFile(manifest, hyper, data)


def facts(model: ModelFile) -> ModelFacts:
    """The public description."""
    manifest, hyper = model.manifest, model.hyper
    name = manifest.metadata.get("general.name")
    sizes = [segment.nbytes for segment in manifest.passes_over]
    return ModelFacts(
        architecture=hyper.family.name,
        format=MODEL_FORMAT_PACKED if manifest.packed else MODEL_FORMAT_GGUF,
        weight_bytes=manifest.weight_bytes,
        layers=hyper.layers,
        context_length=hyper.context,
        vocabulary_size=hyper.vocabulary,
        bytes_by_type=manifest.bytes_by_type,
        minimum_budget=minimum_budget(sizes, manifest.constants.nbytes),
        bytes_per_token=manifest.bytes_per_pass,
        kv_bytes_per_token=hyper.kv_elements_per_token() * KV_BYTES_PER_ELEMENT,
        description=name[:200] if isinstance(name, str) else "",
    )
