"""What does a model need? Told from its header alone; imports no torch, so that it answers in a blink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvstreamd.architectures import names
from nvstreamd.architectures.hyper import Hyper
from nvstreamd.architectures.registry import Architecture, architecture_of, keys_of
from nvstreamd.engine.reports import Facts
from nvstreamd.kernels.kv_memory import page_bytes
from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.pieces import Kind
from nvstreamd.program import KvGroup
from nvstreamd.weights.flow.plan import minimum_budget
from nvstreamd.weights.packed import gguf, store
from nvstreamd.weights.packed.drive_files import at_home
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import Manifest, in_place, shapes_and_types
from nvstreamd.weights.packed.stored import FIRST_PART


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's manifest and what it computes; `data` are the files its extents count."""

    manifest: Manifest
    architecture: Architecture
    data: tuple[OpenFile, ...]

    @property
    def hyper(self) -> Hyper:
        """Its hyperparameters."""
        return self.architecture.hyper


def read_model(files: Sequence[OpenFile]) -> ModelFile:
    """Reads GGUF parts, or a packed store's manifest, header and parts. Raises BadModelFile."""
    if Path(files[0].path).name == store.MANIFEST_NAME:
        manifest = store.read(files)
        keys = keys_of(files[0].path, manifest.metadata)
        names.check(keys, manifest.shapes, manifest.types, manifest.pieces)
        data = tuple(at_home(file, home) for file, home in
                     zip(files[FIRST_PART:], manifest.homes, strict=True))
    else:
        found = gguf.read(list(files))
        keys = keys_of(files[0].path, found.metadata)
        manifest = in_place(found, names.pieces_of(keys, *shapes_and_types(found)))
        data = tuple(files)
    return ModelFile(manifest, architecture_of(keys, manifest.shapes, manifest.types, manifest.pieces), data)


def bytes_per_token(manifest: Manifest, hyper: Hyper) -> int:
    """Weight bytes that a token is multiplied with alone: of experts those that serve it."""
    of_kind = dict.fromkeys(Kind, 0)
    for segment in manifest.segments:
        of_kind[segment.key.kind] += sum(placed.nbytes for placed in segment.tensors)
    experts = of_kind.pop(Kind.EXPERT)
    return sum(of_kind.values()) + (experts * hyper.experts_used // hyper.experts if experts else 0)


def facts(model: ModelFile) -> Facts:
    """The public description."""
    manifest, hyper = model.manifest, model.hyper
    name = manifest.metadata.get("general.name")
    return Facts(
        architecture=model.architecture.name,
        packed=manifest.packed,
        weight_bytes=manifest.weight_bytes,
        layers=hyper.layers,
        context_length=hyper.context,
        vocabulary_size=hyper.vocabulary,
        bytes_by_type=manifest.bytes_by_type,
        minimum_budget=minimum_budget(manifest.sizes, manifest.constants.nbytes),
        bytes_per_token=bytes_per_token(manifest, hyper),
        kv_bytes_per_token=kv_bytes_per_token(model.architecture.model.kv, hyper.context),
        description=name[:200] if isinstance(name, str) else "",
        readers=manifest.readers,
    )


def kv_bytes_per_token(groups: Sequence[KvGroup], context: int) -> int:
    """Bytes of keys and values that a sequence of the whole `context` keeps, a token: a window's layers keep that."""
    kept = sum(page_bytes(group) // PAGE_TOKENS * min(context, group.window or context) for group in groups)
    return -(-kept // context)
