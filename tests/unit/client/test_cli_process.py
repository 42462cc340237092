"""Does the command behave as a process should: Ctrl-C, pipes, closed streams, terminals?"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from nvstream.v1 import inference_pb2, models_pb2
from unit.client import samples
from unit.client.peer import PATIENCE, Forever, Gate, Peer
from unit.client.terminal import COMMAND, Terminal, environment, start


def test_tokens_come_one_by_one_and_sigint_cancels(peer: Peer) -> None:
    gate = Gate()
    peer.script("Generate", samples.accepted(3), samples.delta("Grü"), gate, samples.delta("ße 👩‍👧"), Gate())
    process = start(peer.path, "generate", "m", "x")
    assert process.stdout is not None
    # The first token is readable while the second does not exist: nothing waits in a buffer.
    assert process.stdout.read(4).decode() == "Grü"
    peer.open(gate)
    assert process.stdout.read(len("ße 👩‍👧".encode())).decode() == "ße 👩‍👧"
    process.send_signal(signal.SIGINT)
    rest, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert peer.saw_cancellation()
    # No progress either: stderr is no terminal.
    assert (rest, complaint) == (b"", b"")


def test_sigint_while_queued(peer: Peer) -> None:
    peer.script("Generate", samples.accepted(5), Gate())
    process = start(peer.path, "generate", "--json", "m", "x")
    assert process.stdout is not None
    assert b"accepted" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert peer.saw_cancellation()
    process.communicate()


def test_a_reader_that_has_enough_ends_it_quietly(peer: Peer) -> None:
    peer.script("Generate", Forever(samples.delta("line\n")))
    process = start(peer.path, "generate", "m", "x")
    head = subprocess.run(["head", "-1"], stdin=process.stdout, capture_output=True, timeout=PATIENCE, check=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr is not None
    assert (head.stdout, process.stderr.read()) == (b"line\n", b"")
    assert peer.saw_cancellation()
    process.stderr.close()


def test_a_table_nobody_reads_ends_quietly(peer: Peer) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.serving()]))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        process = start(peer.path, "models", stdout=broken)
        _, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaint) == (0, b"")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_closed_standard_streams_do_no_harm(peer: Peer, closed: str) -> None:
    peer.script("Generate", samples.delta("text"), samples.finished())
    script = f"exec {' '.join(COMMAND)} generate m x {closed}"
    done = subprocess.run(
        ["sh", "-c", script], env=environment(peer.path), capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if closed.startswith(">") else b"text")


def test_a_full_disk_is_an_error(peer: Peer) -> None:
    peer.script("Generate", samples.delta("text"), samples.finished())
    with open("/dev/full", "wb") as full:
        process = start(peer.path, "generate", "m", "x", stdout=full)
        _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert b"No space left" in complaint
    assert b"Traceback" not in complaint


def test_a_locale_without_unicode_loses_nothing_in_a_pipe(peer: Peer) -> None:
    peer.script("Generate", samples.delta("語𝄞"), samples.finished())
    done = subprocess.run(
        [*COMMAND, "generate", "m", "x"],
        env=environment(peer.path) | {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.decode() == "語𝄞"


def test_a_terminal_shows_progress_until_tokens_come(peer: Peer) -> None:
    gate = Gate()
    prefill = samples.progress(inference_pb2.PHASE_PREFILL, 5, 12)
    recovering = samples.progress(inference_pb2.PHASE_RECOVERING, 0, 0)
    peer.script(
        "Generate",
        prefill,
        gate,
        samples.delta("first"),
        recovering,
        samples.delta(" \x1b]2;x"),
        samples.finished(),
    )
    terminal = Terminal.start(peer.path, "generate", "m", "x")
    terminal.read_until("reading the prompt, 5 of 12 tokens")
    peer.open(gate)
    assert terminal.wait() == 0
    shown = terminal.shown
    # The line is erased (CSI 2 K) before the first token, and nothing else is drawn after it.
    assert "\x1b[2K" in shown.split("first")[0]
    assert shown.split("first")[1] == " \N{REPLACEMENT CHARACTER}]2;x\r\n"


def test_ctrl_c_stops_an_answer_and_returns_to_the_prompt(peer: Peer) -> None:
    peer.script("Chat", samples.delta("half"), Gate())
    terminal = Terminal.start(peer.path, "chat", "m", "--system", "be brief")
    terminal.read_until("> ")
    terminal.type("one\n")
    terminal.read_until("half")
    terminal.type("\x03")
    terminal.read_until("> ")
    assert peer.saw_cancellation()
    peer.script("Chat", samples.delta("whole"), samples.finished())
    terminal.type("two\n")
    terminal.read_until("whole\r\n")
    terminal.type("/quit\n")
    assert terminal.wait() == 0
    first, second = peer.request(), peer.request()
    assert [one.content for one in first.messages] == ["be brief", "one"]
    assert [one.content for one in second.messages] == ["be brief", "one", "half", "two"]


def test_a_paragraph_that_is_pasted_is_one_message(peer: Peer) -> None:
    peer.script("Chat", samples.delta("answer"), samples.finished())
    terminal = Terminal.start(peer.path, "chat", "m")
    for pasted in ("one\n\n  two\nthree\n", "again\nand again"):
        terminal.read_until("> ")
        # As terminals send what is pasted, for programs that asked for it; then the return key.
        terminal.read_until("\x1b[?2004h")
        terminal.type(f"\x1b[200~{pasted}\x1b[201~\r")
        terminal.read_until("answer")
    terminal.type("/quit\r")
    assert terminal.wait() == 0
    assert peer.request().messages[-1].content == "one\n\n  two\nthree"
    assert peer.request().messages[-1].content == "again\nand again"
    assert peer.requests.empty()


def test_sigint_in_an_import_cancels_it(peer: Peer, tmp_path: Path) -> None:
    progress = models_pb2.ImportProgress(bytes_done=1, bytes_total=2)
    peer.script("Import", models_pb2.ImportResponse(progress=progress), Gate())
    process = start(peer.path, "models", "import", "--json", str(tmp_path / "a.gguf"))
    assert process.stdout is not None
    assert b'"bytes_done": 1' in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert peer.saw_cancellation()


@pytest.mark.parametrize("args", [["generate", "m", "\udcff"], ["models", "import", "\udcff.gguf"]], ids=" ".join)
def test_a_byte_that_is_no_utf8_is_bad_usage_and_no_traceback(peer: Peer, args: list[str]) -> None:
    """It comes from a shell, or a file's name, as half a character: test_cli_failures has all places for one."""
    process = start(peer.path, *args)
    _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, complaint
    assert b"Traceback" not in complaint and complaint.strip()


def test_a_socket_may_have_any_name(peer: Peer, socket_dir: Path) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.serving()]))
    odd = os.fsencode(socket_dir) + b"/\xff%2f?"
    os.symlink(peer.path, odd)
    process = start(Path(os.fsdecode(odd)), "models")
    out, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, b"smollm2" in out) == (0, True), complaint


@pytest.mark.parametrize("where", ["a pipe", "a terminal of 40 columns"])
def test_names_of_models_are_never_broken(peer: Peer, where: str) -> None:
    """Who copies one from a table, or cuts it out with a program, must have all of it."""
    name = "A long name of 60 characters and more, with (parentheses) - Q4_K_M"
    note = f"{name} is /store/a.nvs; /models/a.gguf is offered as {name}@models"
    peer.script("List", models_pb2.ListResponse(models=[samples.serving(name), samples.unloaded()], notes=[note]))
    if where == "a pipe":
        shown = start(peer.path, "models").communicate(timeout=PATIENCE)[0].decode()
    else:
        terminal = Terminal.start(peer.path, "models")
        assert terminal.wait() == 0
        shown = terminal.shown
    lines = shown.splitlines()
    assert any(line.startswith(name) and "serving" in line for line in lines)
    assert any(line.startswith("qwen3-8b-instruct-q4_k_m") and "unloaded" in line for line in lines)
    assert note in lines
