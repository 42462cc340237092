"""Does the service manager hear of us, and its journal of what the log says, with systemd's library and without it?

A child speaks, over real sockets; where the library is installed each is tried with it and without.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nvstreamd import message_ids
from nvstreamd.systemd import JOURNAL, library
from support.files import ROOT

SECONDS = 60
HAS_LIBRARY = not isinstance(library(), str)
WAYS = [pytest.param(True, id="library", marks=pytest.mark.skipif(
    not HAS_LIBRARY, reason="NOT TESTED: systemd's library: systemd-python is not installed (make lab-packages, "
                            "then make setup-test again)")), pytest.param(False, id="own code")]
# In a child that has no such package, whatever is installed.
WITHOUT = "import sys; sys.modules['systemd'] = None\n"
HOSTILE = "m\nPRIORITY=0\nMESSAGE=all is well"


def child(script: str, *, library: bool, environment: dict[str, str] | None = None, stderr: int | None = None,
          prefix: tuple[str, ...] = (), arguments: tuple[object, ...] = (), fds: tuple[int, ...] = ()) -> str:
    """What a script wrote to stdout; it fails the test when it fails."""
    command = [*prefix, sys.executable, "-c", ("" if library else WITHOUT) + script, *map(str, arguments)]
    done = subprocess.run(command, text=True, check=False, env={**os.environ, **(environment or {})}, timeout=SECONDS,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT if stderr is None else stderr, pass_fds=fds)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("is_abstract", [False, True])
@pytest.mark.parametrize("library", WAYS)
def test_the_service_manager_hears_that_it_is_ready(tmp_path: Path, library: bool, is_abstract: bool) -> None:
    """Type=notify: a start that is not heard of is ended by systemd."""
    address = f"@nvstreamd-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(SECONDS)
        said = child("from nvstreamd import systemd; systemd.notify('READY=1'); print(systemd.way())", library=library,
                     environment={"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1"
    # An administrator sees which it is, and what to do about the lesser.
    words = ("through systemd-python",) if library else ("our own code", "systemd-python cannot be lo", "pip install")
    assert all(word in said for word in words), said


@pytest.mark.parametrize("library", WAYS)
def test_without_a_service_manager_nothing_is_said(library: bool) -> None:
    assert child("from nvstreamd import systemd; systemd.notify('READY=1'); print(systemd.way())", library=library,
                 environment={"NOTIFY_SOCKET": "", "JOURNAL_STREAM": "", "LISTEN_PID": ""}) == "None\n"


# Behind a descriptor, a number added to LISTEN_PID, and how many sockets there are.
LISTEN = """
import os, sys
given, other, count = map(int, sys.argv[1:])
os.environ |= {'LISTEN_PID': str(os.getpid() + other), 'LISTEN_FDS': str(count)}
for fd in range(3, 3 + count): os.dup2(given, fd)
from nvstreamd.errors import ConfigError
from nvstreamd.systemd import listening_socket
try:
    given = listening_socket()
    print(given and (given.getsockname(), os.get_inheritable(given.fileno())))
except ConfigError as error:
    print('refused:', error)
"""


@pytest.mark.parametrize(("other", "count", "said"), [
    (0, 1, "('{path}', False)"), (0, 0, "None"), (1, 1, "None"), (0, 2, "refused: the service manager passed 2")])
@pytest.mark.parametrize("library", WAYS)
def test_the_socket_that_was_passed_is_taken_and_no_other(tmp_path: Path, library: bool, other: int, count: int,
                                                          said: str) -> None:
    path = tmp_path / "given"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        found = child(LISTEN, library=library, arguments=(listener.fileno(), other, count), fds=(listener.fileno(),))
        assert found.startswith(said.format(path=path))


@pytest.mark.parametrize("library", WAYS)
def test_a_socket_on_which_users_cannot_be_told_apart_is_refused(library: bool) -> None:
    with socket.socket(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        found = child(LISTEN, library=library, arguments=(listener.fileno(), 0, 1), fds=(listener.fileno(),))
        assert found.startswith("refused: the service manager passed a socket of AF_INET")


LOG = f"""
import logging, os
from nvstreamd import message_ids, systemd
there = os.fstat(2)
if os.environ.pop('IS_JOURNAL'):
    os.environ['JOURNAL_STREAM'] = f'{{there.st_dev}}:{{there.st_ino}}'
systemd.log_to_the_journal()
log = logging.getLogger('nvstreamd.test')
log.info('listening on %s', '/run/x', extra=message_ids.LISTENING)
log.warning('model %s: %s', {HOSTILE!r}, 'is gone')
log.error('beyond %s', 'x' * 5000 + 'the end of it')
"""


@pytest.mark.parametrize("is_journal", [True, False])
def test_lines_on_stderr_carry_their_priority_where_that_is_the_journal(tmp_path: Path, is_journal: bool) -> None:
    with (tmp_path / "stderr").open("w+") as stderr:
        child(LOG, library=False, environment={"IS_JOURNAL": "1" if is_journal else "", "JOURNAL_STREAM": "1:1"},
              stderr=stderr.fileno())
        stderr.seek(0)
        lines = stderr.read().splitlines()
    begins = ["INFO nvstreamd.test: listening", "WARNING nvstreamd.test: model m PRIORITY=0", "ERROR nvstreamd.test: b"]
    assert [line.startswith(f"<{number}>" * is_journal + begin)
            for line, number, begin in zip(lines, (6, 4, 3), begins, strict=True)] == [True] * 3


def entry(datagram: bytes) -> dict[str, str]:
    """The fields of an entry in the journal's native protocol; those with a line end in them come with a length."""
    found: dict[str, str] = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            (length,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + length], datagram[9 + length :]
        assert name.decode() not in found, name
        found[name.decode()] = value.decode()
    return found


def test_the_numbers_of_events_are_those_of_the_page() -> None:
    """A program that waits for one was written from it."""
    known = {event["message_id"] for name, event in vars(message_ids).items() if name.isupper()}
    page = (ROOT / "docs/administrator.md").read_text()
    assert known == set(re.findall("^\\| `([0-9a-f]{32})` \\|", page, re.MULTILINE)) and len(known) == 6


IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
HEARD = f"""
import os, socket, subprocess, sys
subprocess.run(['mount', '-t', 'tmpfs', 'none', '/run'], check=True)
how, count = sys.argv[1], 3 if sys.argv[1] == 'there' else 0
if how != 'away':
    os.makedirs(os.path.dirname({JOURNAL!r}))
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind({JOURNAL!r})
    if how == 'deaf':
        journal.close()
done = subprocess.run([sys.executable, '-c', {LOG!r}], env={{**os.environ, 'IS_JOURNAL': '1'}}, stderr=subprocess.PIPE)
assert done.returncode == 0, done.stderr
print(*[journal.recv(65536).hex() for _ in range(count)], done.stderr.hex(), sep=chr(10))
"""


def can_have_a_journal() -> str:
    """Why no journal can be played here, empty where it can."""
    if not HAS_LIBRARY:
        return "systemd-python is not installed (make lab-packages, then make setup-test again)"
    probe = [*IN_A_NAMESPACE, "mount", "-t", "tmpfs", "none", "/run"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        return "this machine lets nobody mount in a namespace of his own"
    return ""


def heard(how: str) -> list[bytes]:
    """What a journal was sent by the real library, an entry each, and behind it what was on stderr.

    `how` it is: there, away, or deaf, as when it was killed.
    """
    if reason := can_have_a_journal():
        pytest.skip(f"NOT TESTED: fields in the journal: {reason}")
    said = child(HEARD, library=True, prefix=IN_A_NAMESPACE, stderr=subprocess.PIPE, arguments=(how,))
    return [bytes.fromhex(line) for line in said.split("\n")[:-1]]


def test_the_journal_gets_fields_that_no_text_of_a_users_can_add_to() -> None:
    *sent, stderr = heard("there")
    listening, warning, error = map(entry, sent)
    assert listening["MESSAGE"] == "INFO nvstreamd.test: listening on /run/x"
    assert (listening["PRIORITY"], listening["MESSAGE_ID"]) == ("6", message_ids.LISTENING["message_id"])
    assert (warning["PRIORITY"], warning["NVSTREAM_MODEL"]) == ("4", "m PRIORITY=0 MESSAGE=all is well")
    assert "NVSTREAM_MODEL" not in listening and "MESSAGE_ID" not in warning
    assert error["PRIORITY"] == "3" and len(error["MESSAGE"].encode()) < 2100
    assert not any(b"the end of it" in each for each in sent), "what is cut from the line is in no other field"
    assert stderr == b""


@pytest.mark.parametrize("how", ["away", "deaf"])
def test_what_the_journal_does_not_take_is_on_stderr(how: str) -> None:
    (stderr,) = heard(how)
    assert [line[:3] for line in stderr.decode().splitlines()] == ["<6>", "<4>", "<3>"]
