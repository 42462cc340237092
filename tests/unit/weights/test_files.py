"""Is a model's file opened safely, and is a change of it noticed, whoever else may write there?"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile, ModelChanged, NotFound, NvstreamError, StorageError
from nvstreamd.weights.packed.files import OpenFile, adopt, open_all, parts_of


def open_one(path: Path) -> OpenFile:
    stack = ExitStack()
    file = open_all([path], stack)[0]
    stack.pop_all()
    return file


def refused(path: Path) -> NvstreamError:
    with ExitStack() as stack, pytest.raises(NvstreamError) as error:
        open_all([path], stack)
    assert error.value.hint
    return error.value


def test_an_untouched_file_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"weights")
    file = open_one(tmp_path / "m")
    (tmp_path / "m").chmod(0o600)
    (tmp_path / "m").unlink()
    file.check_unchanged()
    os.close(file.fd)


def test_a_mere_touch_is_no_change_and_what_is_written_after_it_is_one(tmp_path: Path) -> None:
    """Backups and `cp -p` back and forth give files new times; a model that streams must not fail for that."""
    path = tmp_path / "m.gguf"
    path.write_bytes(os.urandom(1 << 20))
    file = open_one(path)
    for time in (5, 6):
        os.utime(path, ns=(time, time))
        file.check_unchanged()
        with pytest.raises(ModelChanged):
            file.check_untouched()
    with path.open("r+b") as rewritten:
        rewritten.seek(300_000)
        rewritten.write(bytes(100_000))
    with pytest.raises(ModelChanged, match=r"m\.gguf"):
        file.check_unchanged()
    os.close(file.fd)


@pytest.mark.parametrize("change", ["truncate", "append", "overwrite", "rewrite"])
def test_a_changed_file_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    os.utime(path, ns=(1, 1))
    file = open_one(path)
    match change:
        case "truncate":
            os.truncate(path, 3)
        case "append":
            path.open("ab").write(b"!")
        case "overwrite":
            path.write_bytes(b"WEIGHTS")
        case "rewrite":
            path.open("r+b").write(b"w3ights")
    with pytest.raises(ModelChanged, match=r"m\.gguf") as error:
        file.check_unchanged()
    assert error.value.hint
    os.close(file.fd)


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (4095, 2), (4096, 4096), (1, 9000), (9990, 100), (20000, 5)])
@pytest.mark.parametrize("direct", [False, True])
def test_bytes_are_read_at_any_place_even_through_a_direct_descriptor(tmp_path: Path, offset: int, count: int,
                                                                      direct: bool) -> None:
    """An engine that may not open the file anew has to set O_DIRECT on the descriptor that rows are fetched with."""
    content = os.urandom(10_000)
    (tmp_path / "m").write_bytes(content)
    file = open_one(tmp_path / "m")
    if direct:
        fcntl.fcntl(file.fd, fcntl.F_SETFL, fcntl.fcntl(file.fd, fcntl.F_GETFL) | os.O_DIRECT)
    assert file.read(count, offset) == content[offset : offset + count]
    os.close(file.fd)


def test_a_failing_read_is_a_storage_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(StorageError, match="some/path") as error:
        adopt(fd, "some/path").read(10, 0)
    assert error.value.hint
    os.close(fd)


def test_a_fifo_is_refused_and_does_not_hold_up_the_daemon(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    assert isinstance(refused(tmp_path / "m.gguf"), BadModelFile)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/", "/proc/self"])
def test_a_device_or_a_directory_is_refused(path: str) -> None:
    assert isinstance(refused(Path(path)), BadModelFile)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "m.gguf"))
        assert isinstance(refused(tmp_path / "m.gguf"), BadModelFile)


@pytest.mark.parametrize("path", ["/nowhere/m.gguf", "/etc/passwd/m.gguf", "/tmp/a\0b.gguf", "/tmp/" + "x" * 5000])
def test_what_is_not_there_is_not_found(path: str) -> None:
    error = refused(Path(path))
    assert isinstance(error, NotFound) and len(str(error)) < 2000


def test_a_name_that_is_not_utf8_still_has_a_message() -> None:
    str(refused(Path(os.fsdecode(b"/nowhere/\xff.gguf")))).encode()


def test_a_link_to_a_gguf_is_followed_and_none_inside_a_packed_model(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "m.gguf").symlink_to("blob")
    assert open_one(tmp_path / "m.gguf").size == 7
    (tmp_path / "m.nvs").mkdir()
    (tmp_path / "m.nvs/part-0.bin").symlink_to("../blob")
    assert "symbolic link" in str(refused(tmp_path / "m.nvs/part-0.bin")).lower()


def test_a_descriptor_is_ready_for_reads_that_wait(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"x")
    file = open_one(tmp_path / "m")
    assert not fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(file.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(file.fd)


def test_too_many_files_is_said_as_such_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, limits[1]))
    try:
        with ExitStack() as stack, pytest.raises(BadModelFile) as error:
            open_all([tmp_path / "m"] * 50, stack)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "LimitNOFILE" in error.value.hint
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["m.gguf", "m-1-of-2.gguf", "m-٠٠٠٠١-of-٠٠٠٠٢.gguf", "m-00001-of-00002.gguf\n"])
def test_only_what_gguf_split_writes_is_a_split_name(name: str) -> None:
    assert parts_of(Path(name)) == [Path(name)]
