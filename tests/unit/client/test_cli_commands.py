"""Do the commands print what they promise, and end with the exit codes they promise?"""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from nvstream.v1 import inference_pb2, models_pb2
from unit.client import samples
from unit.client.peer import Failure, Peer
from unit.client.terminal import run_inside

Code = grpc.StatusCode
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def at_the_peer(monkeypatch: pytest.MonkeyPatch, socket_dir: Path) -> None:
    """The commands dial the peer, and their standard input is empty and no terminal."""
    monkeypatch.setenv("NVSTREAM_SOCKET", str(socket_dir / "s"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdin", _stdin(b""))


def _stdin(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def json_lines(capsys: Capture) -> list[dict[str, Any]]:
    """What stdout holds: one object a line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


CODES = [
    (Code.INVALID_ARGUMENT, 2),
    (Code.UNAVAILABLE, 3),
    (Code.NOT_FOUND, 4),
    (Code.PERMISSION_DENIED, 5),
    (Code.RESOURCE_EXHAUSTED, 6),
    (Code.FAILED_PRECONDITION, 7),
    (Code.ALREADY_EXISTS, 7),
    (Code.ABORTED, 7),
    (Code.DEADLINE_EXCEEDED, 8),
    (Code.CANCELLED, 1),
    (Code.INTERNAL, 1),
    (Code.UNKNOWN, 1),
]


@pytest.mark.parametrize(("code", "exit_code"), CODES, ids=[code.name for code, _ in CODES])
def test_exit_codes(peer: Peer, capsys: Capture, code: Code, exit_code: int) -> None:
    info = error_details_pb2.ErrorInfo(metadata={"hint": "try this"})
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=3))
    peer.script("Generate", samples.delta("some"), Failure(code, "why", (info, retry)))
    assert run_inside("generate", "m", "x") == exit_code
    out, err = capsys.readouterr()
    assert out == "some"
    assert err == "nvstream: why\n  try again in 3 s\n  hint: try this\n"
    peer.script("Load", Failure(code, "why"))
    assert run_inside("models", "load", "m") == exit_code


@pytest.mark.parametrize(
    "args",
    [
        ["generate"],
        ["generate", "m", "x", "--top-k", "many"],
        ["generate", "m", "x", "--top-k", "-1"],
        ["models", "load", "m", "--budget", "60M"],
        ["nonsense"],
    ],
)
def test_bad_usage_is_2(peer: Peer, args: list[str]) -> None:
    assert run_inside(*args) == 2


def test_a_missing_socket_is_3_and_says_what_to_do(capsys: Capture, socket_dir: Path) -> None:
    assert run_inside("status") == 3
    err = capsys.readouterr().err
    assert f"there is no socket at {socket_dir / 's'}" in err
    assert "start the daemon" in err


def test_the_socket_option_works_before_and_after_the_command(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVSTREAM_SOCKET", "/nowhere")
    peer.script("List", models_pb2.ListResponse())
    path = str(peer.path)
    for args in (
        ["--socket", path, "models"],
        ["models", "--socket", path],
        ["models", "list", "--socket", path],
    ):
        assert run_inside(*args) == 0


def test_json_lines_have_the_documented_keys(peer: Peer, capsys: Capture) -> None:
    logprob = inference_pb2.TokenLogprob(token_id=7, logprob=float("-inf"))
    delta = inference_pb2.Delta(token_ids=[7], text="a\n\u2028ü", logprobs=[logprob])
    prefill = samples.progress(inference_pb2.PHASE_PREFILL, 5, 12)
    peer.script(
        "Generate",
        samples.accepted(2),
        prefill,
        inference_pb2.StreamEvent(delta=delta),
        samples.finished("STOP"),
    )
    assert run_inside("generate", "--json", "m", "x") == 0
    assert json_lines(capsys) == [
        {"event": "accepted", "request_id": "r1", "queue_position": 2, "eta_seconds": None},
        {"event": "progress", "phase": "prefill", "done": 5, "total": 12, "eta_seconds": None},
        {
            "event": "delta",
            "token_ids": [7],
            "text": "a\n\u2028ü",
            "logprobs": [{"token_id": 7, "logprob": None, "top": []}],
        },
        {
            "event": "finished",
            "reason": "stop",
            "stop_match": None,
            "usage": {
                "prompt_tokens": 12,
                "cached_tokens": 4,
                "completion_tokens": 30,
                "weight_passes": 31,
                "bytes_by_tier": {"nvme": 3 << 20},
                "queue_seconds": 0.5,
                "prefill_seconds": 1.0,
                "decode_seconds": 10.0,
            },
        },
    ]


def test_json_errors_are_a_line_too(peer: Peer, capsys: Capture) -> None:
    peer.script("Chat", Failure(Code.NOT_FOUND, "no such model"))
    assert run_inside("chat", "--json", "m", "x") == 4
    (line,) = json_lines(capsys)
    assert (line["event"], line["status"], line["message"]) == ("error", "NOT_FOUND", "no such model")


def test_stats_go_to_stderr(peer: Peer, capsys: Capture) -> None:
    peer.script("Generate", samples.delta("text"), samples.finished())
    assert run_inside("generate", "--stats", "m", "x") == 0
    out, err = capsys.readouterr()
    assert out == "text"
    assert "prompt 12 tokens (4 cached), generated 30 (3.00 tokens/s)" in err
    assert "31 passes over the weights, 3.0 MiB from NVMe" in err


@pytest.mark.parametrize("args", [[], ["-"]])
def test_prompts_come_through_a_pipe(peer: Peer, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", _stdin(" two\nlines ü\n".encode()))
    peer.script("Generate", samples.finished())
    assert run_inside("generate", "m", *args) == 0
    assert peer.request().text == " two\nlines ü"


def test_a_pipe_that_is_not_utf8_is_refused(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _stdin(b"\xff"))
    assert run_inside("generate", "m") == 2


def test_only_given_options_are_sent(peer: Peer, tmp_path: Path) -> None:
    peer.script("Generate", samples.finished())
    assert run_inside("generate", "m", "x") == 0
    assert peer.request().options.ListFields() == []
    (tmp_path / "schema").write_text('{"a": 1}')
    args = [
        "-n",
        "0",
        "-t",
        "0",
        "--seed",
        "0",
        "--stop",
        "a",
        "--stop",
        "b",
        "--json-schema",
        f"@{tmp_path}/schema",
    ]
    assert run_inside("generate", "m", "x", *args, "--ignore-eos") == 0
    options = peer.request().options
    assert options.HasField("max_tokens")
    assert {field.name for field, _ in options.sampling.ListFields()} == {"temperature", "seed"}
    assert (list(options.stop), options.json_schema, options.ignore_eos) == (["a", "b"], '{"a": 1}', True)


def test_an_import_onto_drives(peer: Peer) -> None:
    peer.script("Import", models_pb2.ImportResponse(imported=samples.serving()))
    assert run_inside("models", "import", "/a.gguf", "--device", "ONE", "--device", "TWO") == 0
    assert list(peer.request().devices) == ["ONE", "TWO"]


def test_chat_in_one_shot(peer: Peer, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    peer.script("Chat", samples.delta("answer"), samples.finished())
    assert run_inside("chat", "m", "question", "--system", "s") == 0
    assert [(one.role, one.content) for one in peer.request().messages] == [
        ("system", "s"),
        ("user", "question"),
    ]
    monkeypatch.setattr(sys, "stdin", _stdin(b"piped\n"))
    assert run_inside("chat", "m") == 0
    assert [one.content for one in peer.request().messages] == ["piped"]
    assert capsys.readouterr().out == "answeranswer"


def test_a_model_table_has_path_kernel_and_both_times(peer: Peer, capsys: Capture) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.serving(), samples.unloaded()]))
    assert run_inside("models") == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("smollm2 "))
    for expected in ("serving", "134.0 MiB", "uring", "native-q8_0", "40.0 ms", "50.0 ms"):
        assert expected in row
    assert all(note in out for note in samples.NOTES)


@pytest.mark.parametrize(
    "args", [["models", "get", "m"], ["models", "load", "m"], ["models", "import", "a"], ["status"]]
)
def test_sheets_show_path_kernel_notes_and_both_times(peer: Peer, capsys: Capture, args: list[str]) -> None:
    peer.script("Get", models_pb2.GetResponse(model=samples.serving()))
    peer.script("Load", models_pb2.LoadResponse(model=samples.serving()))
    peer.script("Import", models_pb2.ImportResponse(imported=samples.serving()))
    peer.script("GetStatus", samples.daemon())
    assert run_inside(*args) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    for expected in (
        "uring",
        "native-q8_0",
        "40.0 ms expected, 50.0 ms measured",
        "60.0 MiB",
        *samples.NOTES,
    ):
        assert expected in out


def test_load_takes_sizes(peer: Peer) -> None:
    peer.script("Load", models_pb2.LoadResponse(model=samples.serving()))
    assert run_inside("models", "load", "m", "--budget", "60MiB", "--kv-budget", "1.5GiB", "--backend", "pread") == 0
    request = peer.request()
    assert (request.budget, request.kv_budget, request.backend) == (60 << 20, 3 << 29, "pread")


def test_json_of_models_and_status(peer: Peer, capsys: Capture) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.serving(), samples.unloaded()]))
    peer.script("Unload", models_pb2.UnloadResponse())
    peer.script("GetStatus", samples.daemon())
    for args in (["models", "--json"], ["models", "unload", "m", "--json"], ["status", "--json"]):
        assert run_inside(*args) == 0
    first, second, gone, status = json_lines(capsys)
    assert (first["event"], first["state"], first["placement"]["notes"]) == (
        "model",
        "serving",
        list(samples.NOTES),
    )
    assert (second["facts"], second["placement"]) == (None, None)
    assert gone == {"event": "unloaded", "name": "m"}
    assert (status["event"], status["engines"][0]["model"]["name"]) == ("status", "smollm2")
    assert status["notes"] == [samples.WITHOUT]


def test_status_says_what_the_daemon_does_without(peer: Peer, capsys: Capture) -> None:
    peer.script("GetStatus", samples.daemon())
    assert run_inside("status") == 0
    assert samples.WITHOUT in capsys.readouterr().out.splitlines()


def test_what_a_server_says_cannot_drive_the_terminal(peer: Peer, capsys: Capture) -> None:
    peer.script("Get", Failure(Code.NOT_FOUND, "no \x1b[2Jsuch [bold]model[/bold]"))
    assert run_inside("models", "get", "m") == 4
    assert capsys.readouterr().err == "nvstream: no \N{REPLACEMENT CHARACTER}[2Jsuch [bold]model[/bold]\n"


def test_a_violation_that_repeats_the_message_only_says_where(peer: Peer, capsys: Capture) -> None:
    found = [("top_k", "too large"), ("top_p", "not a number")]
    fields = [error_details_pb2.BadRequest.FieldViolation(field=one, description=why) for one, why in found]
    bad = error_details_pb2.BadRequest(field_violations=fields)
    peer.script("Get", Failure(Code.INVALID_ARGUMENT, "too large", (bad,)))
    assert run_inside("models", "get", "m") == 2
    assert capsys.readouterr().err == "nvstream: too large\n  at top_k\n  top_p: not a number\n"


def test_help_has_the_exit_codes(capsys: Capture) -> None:
    for args in (["--help"], ["generate", "--help"], ["models", "--help"]):
        assert run_inside(*args) == 0
        assert "130" in capsys.readouterr().out


def test_the_version_is_told_without_a_daemon(capsys: Capture) -> None:
    assert run_inside("--version") == 0
    assert capsys.readouterr().out == f"nvstream {version('nvstream')}\n"


def test_status_shows_shares_with_their_limits_and_a_stalled_engine(peer: Peer, capsys: Capture) -> None:
    peer.script("GetStatus", samples.shared())
    assert run_inside("status") == 0
    out = capsys.readouterr().out
    for expected in ("no pass for 40 s", "running for 1 min 30 s", "uid 1000, you: weight 2, interactive",
                     "3 of 8 open, 1 running, 2 queued", "500 of 1000 this minute, 7000 today",
                     "uid 1001: weight 1, batch", "4096 tokens at most"):
        assert expected in out, out
    assert run_inside("status", "--json") == 0
    (status,) = json_lines(capsys)
    assert status["shares"][0]["tokens_per_minute"] == 1000 and status["shares"][1]["tokens_per_minute"] is None
    assert (status["engines"][0]["stall"], status["engines"][0]["pass_seconds"]) == ("no pass for 40 s", 90.0)


def test_notes_on_files_that_are_no_models_are_lines_of_json_too(peer: Peer, capsys: Capture) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.unloaded()], notes=["-x.gguf is not offered"]))
    assert run_inside("models", "--json") == 0
    assert [line["event"] for line in json_lines(capsys)] == ["model", "note"]
