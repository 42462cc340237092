"""Which socket does a client dial, and with which channel settings?"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from nvstream.errors import InvalidArgument

# sockaddr_un.sun_path, less the zero at its end.
PATH_BYTES = 107
SYSTEM_SOCKET = Path("/run/nvstreamd/nvstreamd.sock")
TEMPORARY = Path("/tmp")
# A tokenised long prompt or a listing with every fact passes gRPC's default of 4 MiB.
MESSAGE_BYTES = 64 << 20
# What the daemon takes.
REQUEST_BYTES = 16 << 20
# Error details travel in trailers, whose default limit of 8 KiB a long list of violations passes.
METADATA_BYTES = 64 << 10


def socket_path(
    given: str | os.PathLike[str] | None,
    environment: Mapping[str, str],
    system: Path = SYSTEM_SOCKET,
    temporary: Path = TEMPORARY,
) -> Path:
    """The absolute path of the daemon's socket.

    `given` wins over NVSTREAM_SOCKET in `environment`; then `system` if it exists, then the caller's own
    daemon under XDG_RUNTIME_DIR, or where it goes without that variable, a directory in `temporary`. Else it
    is `system` again, so that an error names a real place.
    """
    chosen = os.fspath(given) if given else environment.get("NVSTREAM_SOCKET")
    if chosen:
        return Path(chosen.removeprefix("unix:")).expanduser().absolute()
    runtime = environment.get("XDG_RUNTIME_DIR")
    own = Path(runtime) if runtime else temporary / f"nvstreamd-{os.getuid()}"
    if system.exists() or not (runtime or _is_mine(own)):
        return system
    return own / "nvstreamd" / "nvstreamd.sock"


def _is_mine(directory: Path) -> bool:
    """True when the caller alone rules it: anybody may make a directory in /tmp, and would be told the prompts."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def target(path: Path) -> str:
    """The gRPC target of a socket; a path may hold what a URI must escape. Raises InvalidArgument."""
    if len(os.fsencode(path)) > PATH_BYTES:
        raise InvalidArgument(f"{path} is too long for a Unix socket, which has room for {PATH_BYTES} bytes",
                              hint="name a shorter path, through a symbolic link for instance")
    if "\0" in str(path):
        raise InvalidArgument(f"{str(path)!r} is no path")
    return f"unix:{quote(os.fsencode(path))}"


def channel_options() -> list[tuple[str, str | int]]:
    """Channel arguments for both kinds of client.

    Retries are off: a generation is paid for and not idempotent, so a lost one is the caller's to repeat.
    """
    return [
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_send_message_length", REQUEST_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        # A restarted daemon is found again at once; a failed connect to a local socket costs nothing.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # How long an attempt may take: systemd accepts for a daemon that it starts only then.
        ("grpc.min_reconnect_backoff_ms", 20_000),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
