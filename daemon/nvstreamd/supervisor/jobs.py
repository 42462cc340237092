"""How does the daemon learn about model files without parsing them itself? By an engine that does one job and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from nvstream.v1.models_pb2 import ImportProgress, ModelFacts
from nvstreamd.errors import from_wire
from nvstreamd.supervisor.process import EngineProcess, named
from nvstreamd.weights.files import OpenFile, open_all, parts_of
from nvstreamd.weights.store import SUFFIX, files_of
from nvstreamd.wire.engine_pb2 import Describe, Described, FromEngine, Pack, ToEngine


def paths_of(path: Path) -> list[Path]:
    """All files of the model at `path`: GGUF parts, or what a packed directory consists of. Raises NvstreamError."""
    return files_of(path) if path.suffix == SUFFIX else parts_of(path)


def checked(report: FromEngine) -> FromEngine:
    """The report, unless it is a failure: then raises that as NvstreamError."""
    if report.WhichOneof("report") == "failure":
        failure = report.failure
        raise from_wire(failure.status, failure.message, failure.hint, failure.field)
    return report


async def describe(path: Path, user: str | None) -> ModelFacts:
    """What a model needs. Raises NvstreamError naming file, field and remedy."""
    with ExitStack() as stack:
        files = open_all(paths_of(path), stack)
        engine = EngineProcess(user)
        await engine.start(ToEngine(describe=Describe(files=named(files))), files)
        try:
            return checked(await engine.receive()).described.facts
        finally:
            await engine.stop()


async def pack(path: Path, name: str, home: Path, directories: Sequence[Path],
               user: str | None) -> AsyncIterator[ImportProgress | Described]:
    """Progress of an import, then its result. Raises NvstreamError; closing the iterator stops the import."""
    with ExitStack() as stack:
        files: list[OpenFile] = open_all(paths_of(path), stack)
        command = Pack(files=named(files), name=name, home=str(home), directories=list(map(str, directories)))
        engine = EngineProcess(user)
        await engine.start(ToEngine(pack=command), files)
        try:
            while True:
                report = checked(await engine.receive())
                if report.WhichOneof("report") == "described":
                    yield report.described
                    return
                yield report.pack_progress.progress
        finally:
            await engine.stop()
