"""Do the commands end with the exit codes they promise, and say what went wrong?"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from unit.client import samples
from unit.client.peer import Failure, Peer
from unit.client.terminal import json_lines, run_inside, standard_input

Code = grpc.StatusCode
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("at_the_peer")


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


@pytest.mark.parametrize("args", [
    ["generate", "m", "\udcff"],
    ["generate", "\udcff", "x"],
    ["generate", "m", "x", "--stop", "\udcff"],
    ["generate", "m", "x", "--json-schema", "\udcff"],
    ["chat", "m", "\udcff"],
    ["chat", "m", "x", "--system", "\udcff"],
    ["models", "get", "\udcff"],
    ["models", "load", "\udcff"],
    ["models", "unload", "\udcff"],
    ["models", "load", "m", "--backend", "\udcff"],
    ["models", "load", "m", "--budget", "99999999TiB"],
    ["models", "import", "\udcff.gguf"],
    ["models", "import", "a.gguf", "--directory", "\udcff"],
    ["generate", "m", "x", "--timeout", "nan"],
], ids=" ".join)
def test_what_no_message_can_carry_is_bad_usage(capfd: pytest.CaptureFixture[str], args: list[str]) -> None:
    """A byte that is no UTF-8 comes from a shell, or a file's name, as half a character."""
    assert run_inside(*args) == 2
    assert capfd.readouterr().err.strip()


def test_a_missing_socket_is_3_and_says_what_to_do(capsys: Capture, socket_dir: Path) -> None:
    assert run_inside("status") == 3
    err = capsys.readouterr().err
    assert f"there is no socket at {socket_dir / 's'}" in err
    assert "start the daemon" in err


def test_json_errors_are_a_line_too(peer: Peer, capsys: Capture) -> None:
    peer.script("Chat", Failure(Code.NOT_FOUND, "no such model"))
    assert run_inside("chat", "--json", "m", "x") == 4
    (line,) = json_lines(capsys)
    assert (line["event"], line["status"], line["message"]) == ("error", "NOT_FOUND", "no such model")


def test_a_pipe_that_is_not_utf8_is_refused(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", standard_input(b"\xff"))
    assert run_inside("generate", "m") == 2


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
