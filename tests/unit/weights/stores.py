"""How does a test import a model, break the result, and read it back as the engine would?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nvdma.arena import Arena
from nvdma.backends.pread import PreadBackend
from nvdma.types import Source
from nvstreamd.engine.describe import ModelFile
from nvstreamd.weights.flow.embedding import EmbeddingRows
from nvstreamd.weights.flow.flow import Flow
from nvstreamd.weights.flow.mover import Mover
from nvstreamd.weights.flow.plan import Rates, plan
from nvstreamd.weights.flow.pools import Pool
from nvstreamd.weights.packed.drive_files import Drives
from nvstreamd.weights.packed.importer import Importer, Progress
from nvstreamd.weights.packed.manifest import Segment
from nvstreamd.weights.packed.targets import in_directories
from unit.weights.models import model_at

Report = Callable[[Progress], None]


def pack(source: Path, directories: Sequence[Path], report: Report = lambda _: None, name: str = "m") -> Path:
    """Imports the GGUF at `source`; returns the packed directory."""
    with model_at(source) as model:
        targets = in_directories(name, directories)
        return Importer(name, model.manifest, model.data, targets, directories[0]).run(report)


def contents(directories: Sequence[Path]) -> dict[str, bytes]:
    """Every file of a store by its path below the directories' parent."""
    return {str(path.relative_to(directory.parent)): path.read_bytes()
            for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()}


def edit(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes manifest.json as a stranger would."""
    path = store / "manifest.json"
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def written_before(store: Path, version: int) -> None:
    """Makes manifest.json one of version 1 or 2: layers and head apart, tensors without the names of their own."""
    def change(stored: dict[str, Any]) -> None:
        del stored["readers"]
        stored["version"] = version
        if version == 1:
            del stored["sources"]
        by_kind: dict[str, list[dict[str, Any]]] = {"constants": [], "layer": [], "head": []}
        for segment in stored.pop("segments"):
            segment["name"] = segment.pop("key")
            firsts = [(tensor.pop("first"), tensor.pop("tensor"))[0] for tensor in segment["tensors"]]
            segment["first_row"] = max(firsts, default=0)
            by_kind[segment["name"].split(".")[0]].append(segment)
        stored.update(constants=by_kind["constants"][0], layers=by_kind["layer"], head=by_kind["head"])

    edit(store, change)


def load_all(path: Path, budget: int | None = None, drives: Drives | None = None) -> dict[str, bytes]:
    """Every segment of one pass, and the embedding, through pread under a budget: {name: bytes of its tensors}."""
    with ExitStack() as stack:
        return _load(stack.enter_context(model_at(path, drives)), budget, stack)


def _load(model: ModelFile, budget: int | None, stack: ExitStack) -> dict[str, bytes]:
    manifest = model.manifest
    whole = sum(manifest.sizes.values()) + manifest.constants.nbytes
    chosen = plan(manifest.sizes, manifest.constants.nbytes, (budget or whole,), 1 << 20, Rates(1e9, (1e9,)))
    arena = stack.enter_context(Arena(budget or whole))
    backend = PreadBackend([Source(file.fd, file.path, file.size) for file in model.data], arena)
    backend.open()
    stack.callback(backend.close)
    pool = Pool(arena)
    pool.open(stack)
    mover = Mover(backend, model.data, 1 << 20)
    constants = pool.take(manifest.constants.nbytes)
    mover.fill(manifest.constants, constants)
    flow = Flow(mover, pool, manifest.segments, chosen)
    flow.start(stack)
    found = tensors_of(manifest.constants, constants.view)
    for segment in manifest.segments:
        with flow.segment(segment.key) as held:
            found |= tensors_of(segment, held.slot.view)
    rows = EmbeddingRows(manifest.embedding, model.data)
    found["embedding"] = bytes(rows.fetch(range(manifest.embedding.rows)))
    return found


def tensors_of(segment: Segment, view: memoryview) -> dict[str, bytes]:
    """{segment/tensor: its bytes} of a filled slot."""
    return {f"{segment.name}/{place.name}": bytes(view[place.offset : place.offset + place.nbytes])
            for place in segment.tensors}
