"""Do the commands ask for what they were told to, and print what they promise?"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from nvstream.v1 import inference_pb2, models_pb2
from unit.client import samples
from unit.client.peer import Peer
from unit.client.terminal import json_lines, run_inside, standard_input

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("at_the_peer")


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
                "proposed_tokens": 12,
                "accepted_tokens": 9,
                "caused_bytes": 2 << 20,
                "bytes_by_tier": {"nvme": 3 << 20},
                "queue_seconds": 0.5,
                "prefill_seconds": 1.0,
                "decode_seconds": 10.0,
            },
        },
    ]


def test_stats_go_to_stderr(peer: Peer, capsys: Capture) -> None:
    peer.script("Generate", samples.delta("text"), samples.finished())
    assert run_inside("generate", "--stats", "m", "x") == 0
    out, err = capsys.readouterr()
    assert out == "text"
    assert "prompt 12 tokens (4 cached), generated 30 (3.00 tokens/s)" in err
    assert "31 passes over the weights, 3.0 MiB from NVMe" in err and "guessed 12 tokens, 9 of them right" in err
    assert "2.0 MiB of what was read was for this request alone" in err


@pytest.mark.parametrize("args", [[], ["-"]])
def test_prompts_come_through_a_pipe(peer: Peer, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", standard_input(" two\nlines ü\n".encode()))
    peer.script("Generate", samples.finished())
    assert run_inside("generate", "m", *args) == 0
    assert peer.request().text == " two\nlines ü"


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
    monkeypatch.setattr(sys, "stdin", standard_input(b"piped\n"))
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


@pytest.mark.parametrize(("hits", "misses", "line"), [
    ([9, 5], [1, 5], "70% of 20 needs were in memory, 50% in layer 1 of those that have some"),
    ([], [], None), ([0, 0], [0, 0], None), ([3], [], None),
])
def test_status_says_how_often_experts_were_in_memory(peer: Peer, capsys: Capture, hits: list[int], misses: list[int],
                                                      line: str | None) -> None:
    """Whatever a daemon of another version says."""
    daemon = samples.shared()
    daemon.engines[0].expert_hits.extend(hits)
    daemon.engines[0].expert_misses.extend(misses)
    peer.script("GetStatus", daemon)
    assert run_inside("status") == 0
    out = capsys.readouterr().out
    assert (line in out) if line else "needs were in memory" not in out


def test_notes_on_files_that_are_no_models_are_lines_of_json_too(peer: Peer, capsys: Capture) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.unloaded()], notes=["-x.gguf is not offered"]))
    assert run_inside("models", "--json") == 0
    assert [line["event"] for line in json_lines(capsys)] == ["model", "note"]
