"""Does an import through the daemon survive what happens to engines and disks, and does the daemon survive it too?"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from nvstream.v1 import inference_pb2 as inference
from nvstream.v1 import models_pb2 as models
from support.daemon import DEADLINE, Collected, Daemon, running
from support.files import SMOLLM2
from support.shapes import tiny
from support.small_disk import needs_root, small_disk
from support.vocabularies import synthetic_vocabulary
from unit.weights.models import make

MIB = 1 << 20
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with an empty store and a directory of models."""
    (tmp_path / "models").mkdir()
    with running(tmp_path / "daemon", "--model-directory", str(tmp_path / "models")) as started:
        yield started


def start(daemon: Daemon, source: Path, **request: object) -> Iterator[models.ImportResponse]:
    message = models.ImportRequest(source=str(source), **request)  # type: ignore[arg-type]
    stream: Iterator[models.ImportResponse] = daemon.models.Import(message, timeout=DEADLINE)
    return stream


def engines(daemon: Daemon) -> list[int]:
    """The daemon's children."""
    return [int(pid) for path in Path(f"/proc/{daemon.process.pid}/task").glob("*/children")
            for pid in path.read_text().split()]


def refused(call: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call() if callable(call) else list(call)  # type: ignore[call-overload]
    return error.value


@pytest.mark.slow
def test_an_import_whose_engine_is_killed_resumes_and_answers_like_its_source(daemon: Daemon, tmp_path: Path) -> None:
    stream = start(daemon, SMOLLM2, name="packed", directories=[str(tmp_path / "a"), str(tmp_path / "b")])
    first = next(stream).progress
    (engine,) = engines(daemon)
    os.kill(engine, signal.SIGKILL)
    lost = refused(stream)
    assert lost.code() == grpc.StatusCode.UNAVAILABLE
    listed = daemon.models.List(models.ListRequest())
    assert "packed" not in {model.name for model in listed.models} and "packed" in str(listed.notes)
    half = refused(lambda: daemon.load("packed", 60 * MIB))
    assert half.code() == PRECONDITION and "run it again" in str(half.details())
    events = list(start(daemon, SMOLLM2, name="packed", directories=[str(tmp_path / "a"), str(tmp_path / "b")]))
    last = events[-2].progress
    assert first.bytes_done <= last.bytes_resumed < last.bytes_total == last.bytes_done
    assert events[-1].imported.name == "packed"
    packed = daemon.models.Get(models.GetRequest(model="packed"), timeout=DEADLINE).model
    assert packed.facts.format == models.MODEL_FORMAT_PACKED
    daemon.load("packed", 60 * MIB)
    assert daemon.generate("packed", "The capital of France is", max_tokens=1).text == " Paris"


def test_a_flipped_bit_is_found_at_load(daemon: Daemon, tmp_path: Path) -> None:
    source = make(tmp_path / "source.gguf", tiny(layers=3))
    store = Path(list(start(daemon, source, name="tiny"))[-1].imported.path)
    stored = json.loads((store / "manifest.json").read_text())
    with (store / "part-0.bin").open("r+b") as part:
        part.seek(stored["segments"][2]["extents"][0]["offset"] + 77)
        byte = part.read(1)[0]
        part.seek(-1, os.SEEK_CUR)
        part.write(bytes([byte ^ 1]))
    error = refused(lambda: daemon.load("tiny", 4 * MIB))
    assert error.code() == PRECONDITION
    assert all(word in str(error.details()) for word in ("part-0.bin", "layer.1", "import"))


def test_traps_in_a_directory_of_models_hold_nobody_up(daemon: Daemon, tmp_path: Path) -> None:
    """Whoever may write there can put anything there; the daemon answers them, and goes on answering others."""
    directory = tmp_path / "models"
    os.mkfifo(directory / "fifo.gguf")
    (directory / "device.gguf").symlink_to("/dev/zero")
    make(tmp_path / "source.gguf")
    packed = Path(list(start(daemon, tmp_path / "source.gguf", name="good"))[-1].imported.path)
    for name, part in (("passwords", "/etc/shadow"), ("waiting", str(directory / "fifo.gguf"))):
        trap = directory / f"{name}.nvs"
        trap.mkdir()
        (trap / "header.gguf").write_bytes((packed / "header.gguf").read_bytes())
        stored = json.loads((packed / "manifest.json").read_text())
        (trap / "manifest.json").write_text(json.dumps({**stored, "parts": [part]}))
    for name in ("fifo", "device", "passwords", "waiting"):
        error = refused(lambda name=name: daemon.models.Get(models.GetRequest(model=name), timeout=DEADLINE))
        assert error.code() == PRECONDITION, name
        assert refused(lambda name=name: daemon.load(name, 4 * MIB)).code() == PRECONDITION
    assert daemon.models.Get(models.GetRequest(model="good"), timeout=DEADLINE).model.facts.layers == 2


def test_a_packed_model_cannot_be_imported_over_itself(daemon: Daemon, tmp_path: Path) -> None:
    make(tmp_path / "source.gguf")
    store = Path(list(start(daemon, tmp_path / "source.gguf", name="tiny"))[-1].imported.path)
    assert refused(start(daemon, store)).code() == grpc.StatusCode.INVALID_ARGUMENT
    daemon.load("tiny", 4 * MIB)


@needs_root
def test_a_full_disk_is_told_and_the_import_succeeds_once_there_is_room(daemon: Daemon, tmp_path: Path) -> None:
    make(tmp_path / "source.gguf")
    with small_disk(tmp_path / "disk", MIB) as disk:
        (disk / "ballast").write_bytes(bytes(1000 << 10))
        error = refused(start(daemon, tmp_path / "source.gguf", name="tiny", directories=[str(disk)]))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert all(word in str(error.details()) for word in (str(disk), "MiB", "again"))
        (disk / "ballast").unlink()
        assert list(start(daemon, tmp_path / "source.gguf", name="tiny", directories=[str(disk)]))[-1].imported.path


def test_an_import_refuses_what_could_not_be_loaded_before_it_writes(daemon: Daemon, tmp_path: Path) -> None:
    vocabulary = {**synthetic_vocabulary(), "tokenizer.ggml.model": "of another world"}
    source = make(tmp_path / "source.gguf", tiny(), vocabulary=vocabulary)
    error = refused(start(daemon, source, name="mute"))
    assert error.code() == PRECONDITION and "tokenizer.ggml.model" in str(error.details())
    store = tmp_path / "daemon/store"
    assert not store.exists() or not list(store.iterdir())
    assert not daemon.models.List(models.ListRequest()).models


def test_a_hint_is_said_once(daemon: Daemon, tmp_path: Path) -> None:
    vocabulary = {**synthetic_vocabulary(), "tokenizer.ggml.model": "of another world"}
    error = refused(start(daemon, make(tmp_path / "source.gguf", tiny(), vocabulary=vocabulary), name="mute"))
    (info,) = [each for each in Collected(error=error).details().values() if each.DESCRIPTOR.name == "ErrorInfo"]
    assert str(error.details()).count(info.metadata["hint"]) == 1  # type: ignore[attr-defined]


def test_a_model_in_a_directory_below_is_served_under_its_own_name_and_may_be_touched(daemon: Daemon,
                                                                                     tmp_path: Path) -> None:
    """Its import then takes its name, and what it was stays in reach."""
    path = tmp_path / "models/some publisher/Größe C++.GGUF"
    path.parent.mkdir()
    make(tmp_path / "source.gguf", tiny(layers=3)).rename(path)
    model, smallest = "Größe C++", daemon.models.Get(models.GetRequest(model="Größe C++")).model.facts.minimum_budget
    assert daemon.load(model, smallest).state == models.MODEL_STATE_SERVING
    before = daemon.generate(model, [1, 2, 3], max_tokens=5).ids
    os.utime(path)
    assert daemon.generate(model, [1, 2, 3], max_tokens=5).ids == before
    again = refused(lambda: daemon.load(model, smallest))
    assert again.code() == PRECONDITION and "loaded already" in str(again.details())
    daemon.unload(model)
    imported = list(start(daemon, path))[-1].imported
    listed = daemon.models.List(models.ListRequest())
    assert {each.name: each.path for each in listed.models} == {model: imported.path,
                                                                f"{model}@some publisher": str(path)}
    assert any(f"{model}@some publisher" in note for note in listed.notes)
    assert set(listed.notes) <= set(daemon.status().notes)


def test_a_kv_budget_that_is_too_small_is_not_said_to_be_as_large_as_what_it_needs(daemon: Daemon,
                                                                                   tmp_path: Path) -> None:
    make(tmp_path / "models/m.gguf")
    error = refused(lambda: daemon.load("m", 64 * MIB, kv_budget=1))
    given, least = re.findall(r"(\d+ ?\w+) is too small .*takes (\d+ ?\w+)", str(error.details()))[0]
    assert given != least


def test_what_is_too_large_is_said_to_be_and_is_no_passing_error(daemon: Daemon, tmp_path: Path) -> None:
    """A queue that is full is told as RESOURCE_EXHAUSTED: who was told that would try again, for ever."""
    make(tmp_path / "models/m.gguf")
    daemon.load("m", 64 * MIB)
    sent = daemon.generate("m", "x" * (17 * MIB)).error
    assert sent is not None and sent.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(16 * MIB) in str(sent.details())
    text = inference.TokenizeRequest(model="m", text="\u0100" * (3 * MIB // 2))
    replied = refused(lambda: daemon.inference.Tokenize(text, timeout=DEADLINE))
    assert replied.code() == grpc.StatusCode.INVALID_ARGUMENT and "in parts" in str(replied.details())
