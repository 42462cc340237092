"""Does the daemon keep its word to administrators and to the service manager?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from nvstream.v1 import models_pb2 as models
from support.daemon import Collected, Daemon, running
from support.files import SMOLLM2

MIB = 1 << 20
NOBODY = 65534


def health(daemon: Daemon, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int(health_pb2_grpc.HealthStub(daemon.channel).Check(request).status)


def test_health_and_reflection(smollm2: Daemon, name: str) -> None:
    assert health(smollm2, "") == health_pb2.HealthCheckResponse.SERVING
    assert health(smollm2, name) == health_pb2.HealthCheckResponse.SERVING
    services = set(ProtoReflectionDescriptorDatabase(smollm2.channel).get_services())
    assert {"nvstream.v1.Inference", "nvstream.v1.Models", "nvstream.v1.Status", "grpc.health.v1.Health"} <= services


def test_health_says_so_while_an_engine_is_replaced(smollm2: Daemon, name: str) -> None:
    watch = health_pb2_grpc.HealthStub(smollm2.channel).Watch(health_pb2.HealthCheckRequest(service=name))
    seen = [next(watch).status]
    os.kill(smollm2.engine(name).pid, signal.SIGKILL)
    while seen[-1] != health_pb2.HealthCheckResponse.SERVING or len(seen) < 3:
        seen.append(next(watch).status)
    watch.cancel()
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert seen == [serving, not_serving, serving]


def test_the_manifest_tells_what_a_model_needs(smollm2: Daemon, name: str) -> None:
    facts = smollm2.models.Get(models.GetRequest(model=name)).model.facts
    assert facts.architecture == "llama" and facts.layers == 30
    assert facts.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert facts.minimum_budget < facts.weight_bytes // 10
    assert sum(facts.bytes_by_type.values()) == facts.weight_bytes


def test_a_budget_too_small_is_refused_with_the_figure_that_works(smollm2: Daemon, tmp_path: Path) -> None:
    with running(tmp_path, "--model-directory", str(SMOLLM2.parent)) as daemon:
        with pytest.raises(grpc.RpcError) as refused:
            daemon.load(SMOLLM2.stem, 1 * MIB)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        smallest = int(refused.value.details().rpartition("that works is ")[2].partition("MiB")[0])
        assert daemon.load(SMOLLM2.stem, smallest * MIB).placement.budget <= smallest * MIB
        assert daemon.generate(SMOLLM2.stem, "The capital of France is", max_tokens=1).text == " Paris"


def test_weights_and_kv_caches_of_all_models_stay_under_the_daemons_memory(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    with running(tmp_path, "--memory", "150MiB", *(f"--model={name}={SMOLLM2}" for name in names)) as daemon:
        daemon.wait("the first to be served", lambda: daemon.engine("one").model.placement.budget > 0)
        daemon.wait("the others to be refused", lambda: all(
            daemon.engine(name).model.state == models.MODEL_STATE_FAILED for name in names[1:]))
        daemon.unload("one")
        taken = 0
        daemon.unload("two")
        for name, budget, kv_budget in (("one", 20, 40), ("two", 30, None)):
            placement = daemon.load(name, budget * MIB, kv_budget=kv_budget and kv_budget * MIB).placement
            taken += placement.budget + placement.kv_budget
            assert placement.budget <= budget * MIB and placement.kv_budget > 0
        assert taken <= 150 * MIB
        with pytest.raises(grpc.RpcError) as refused:
            daemon.load("three", 150 * MIB - taken, kv_budget=MIB)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "`memory`" in str(refused.value.details())


def test_a_configuration_of_before_memory_counted_kv_caches_works_and_is_told(tmp_path: Path) -> None:
    config = tmp_path / "nvstreamd.toml"
    config.write_text(f'memory = "20MiB"\nkv_memory = "64MiB"\n[[models]]\nname = "m"\npath = "{SMOLLM2}"\n')
    with running(tmp_path / "daemon", "--config", str(config)) as daemon:
        daemon.wait("the model", lambda: daemon.engine("m").model.state == models.MODEL_STATE_SERVING)
        placement = daemon.engine("m").model.placement
        assert placement.budget <= 20 * MIB and 60 * MIB < placement.kv_budget <= 64 * MIB
        assert any("kv_memory" in note and "64MiB" in note for note in daemon.status().notes)


def test_a_model_file_that_changes_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "models/changing.gguf"
    copy.parent.mkdir()
    copy.write_bytes(SMOLLM2.read_bytes())
    with running(tmp_path / "daemon", "--model-directory", str(copy.parent)) as daemon:
        daemon.load("changing", 20 * MIB)
        stream = daemon.open("changing", "Count: 1 2 3", max_tokens=2000, ignore_eos=True, speculation=False)
        collected = Collected()
        collected.take(next(stream))
        os.truncate(copy, 50 * MIB)
        with pytest.raises(grpc.RpcError) as failed:
            for event in stream:
                collected.take(event)
        assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert str(copy) in failed.value.details() and "load" in failed.value.details()
        daemon.wait("the model to have failed", lambda: health(daemon, "changing") != 1)
        assert health(daemon, "") == health_pb2.HealthCheckResponse.SERVING


def test_nan_weights_are_named(tmp_path: Path) -> None:
    """A scale of NaN in layer 17 must end in an error that says where, not in nonsense tokens."""
    from contextlib import ExitStack

    from nvstreamd.weights.packed.files import open_all
    from nvstreamd.weights.packed.gguf import read

    copy = tmp_path / "models/nan.gguf"
    copy.parent.mkdir()
    copy.write_bytes(SMOLLM2.read_bytes())
    with ExitStack() as stack:
        tensor = read(open_all([copy], stack)).tensors["blk.17.ffn_down.weight"]
    with copy.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff\x7f")
    with running(tmp_path / "daemon", "--model-directory", str(copy.parent)) as daemon:
        daemon.load("nan", 120 * MIB)
        stream = daemon.generate("nan", "x", max_tokens=3)
        assert stream.error is not None and stream.error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "blk.17.ffn_down.weight" in stream.error.details()
        assert str(copy) in stream.error.details()


def test_sigterm_lets_streams_end(tmp_path: Path) -> None:
    with running(tmp_path, "--model-directory", str(SMOLLM2.parent)) as daemon:
        daemon.load(SMOLLM2.stem, 200 * MIB)
        stream = daemon.open(SMOLLM2.stem, "Count: 1 2 3", max_tokens=12, ignore_eos=True, speculation=False)
        first = next(stream)
        daemon.process.send_signal(signal.SIGTERM)
        events = [first, *stream]
        assert events[-1].finished.usage.completion_tokens == 12
        assert daemon.process.wait(timeout=60) == 0
        assert not daemon.socket.exists()


def test_socket_activation(tmp_path: Path) -> None:
    """systemd holds the socket; the daemon serves on descriptor 3 and leaves the path alone."""
    path = tmp_path / "activated.sock"
    launch = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.environ['LISTEN_FDS'] = '1'; "
        "os.dup2(int(sys.argv[2]), 3); "
        "os.execv(sys.executable, [sys.executable, '-m', 'nvstreamd', '--store', sys.argv[1]])"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen([sys.executable, "-c", launch, str(tmp_path / "store"), str(listener.fileno())],
                                   pass_fds=[listener.fileno()])
        try:
            with grpc.insecure_channel(f"unix:{path}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0
        assert path.exists()


AS_NOBODY = """
import os, sys, grpc
from nvstream.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, status_pb2, status_pb2_grpc
# After the imports: the interpreter may lie where other users cannot look.
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
channel = grpc.insecure_channel("unix:" + sys.argv[1])
status = status_pb2_grpc.StatusStub(channel).GetStatus(status_pb2.GetStatusRequest())
print(status.caller.uid, status.caller.administrator)
options = inference_pb2.Options(max_tokens=1, sampling=inference_pb2.Sampling(temperature=0))
request = inference_pb2.GenerateRequest(model=sys.argv[2], text="The capital of France is", options=options)
print("".join(e.delta.text for e in inference_pb2_grpc.InferenceStub(channel).Generate(request)))
try:
    models_pb2_grpc.ModelsStub(channel).Unload(models_pb2.UnloadRequest(model=sys.argv[2]))
except grpc.RpcError as error:
    print(error.code().name)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="another uid can only be taken on by root: run the tests as root too")
def test_another_user_may_generate_and_not_administer(name: str) -> None:
    import tempfile

    # Not below pytest's own directory, which other users cannot enter.
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        with running(Path(open_to_all), "--model-directory", str(SMOLLM2.parent)) as daemon:
            daemon.load(name, 200 * MIB)
            script = AS_NOBODY.format(nobody=NOBODY)
            done = subprocess.run([sys.executable, "-c", script, str(daemon.socket), name], capture_output=True,
                                  text=True, check=False)
    assert done.stdout.split("\n")[:3] == [f"{NOBODY} False", " Paris", "PERMISSION_DENIED"], done.stderr
