"""What does an engine process do? The one thing its first command says: describe, pack, or load and serve."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeGuard

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.walls import raise_walls
from nvstreamd.errors import NvstreamError, ProtocolError
from nvstreamd.text import log_to_stderr, places
from nvstreamd.weights.files import OpenFile, adopt
from nvstreamd.wire.engine_pb2 import Device, File, Load, Pack, ToEngine

log = logging.getLogger(__name__)


def main() -> int:
    """Exit status 0 when the daemon closed the channel or the job is done, 1 after a fatal error."""
    log_to_stderr()
    parser = argparse.ArgumentParser(prog="nvstreamd-engine")
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket pair's end")
    channel = Channel(socket.socket(fileno=parser.parse_args().channel))
    # Ctrl-C in a terminal reaches the whole process group; the daemon says when an engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The first command is the daemon's; what it names is anybody's.
    missing = raise_walls()
    try:
        command, fds = channel.receive_first()
        _dispatch(channel, command, fds, missing)
    except NvstreamError as error:
        channel.fail(error)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        # Its text may be a user's, and the log is not.
        log.error("the engine ends: %s", places(error, with_text=False))
        return 1
    return 0


def _dispatch(channel: Channel, command: ToEngine, fds: list[int], missing: list[str]) -> None:
    """Does what it was started for; of `missing` walls `status` tells, or for a short job the log."""
    kind = command.WhichOneof("command")
    if kind != "load":
        sys.stderr.writelines(f"WARNING {note}\n" for note in missing)
    if kind == "describe":
        _describe(channel, _files(command.describe.files, fds))
    elif kind == "pack":
        both = _files([*command.pack.files, *command.pack.devices], fds)
        files = len(command.pack.files)
        _pack(channel, command.pack, both[:files], both[files:])
    elif kind == "load":
        own = sum(not _is_claimed(file) for file in command.load.files)
        _serve(channel, command.load, _files(command.load.files, fds[:own]), fds[own:], missing)
    else:
        raise ProtocolError(f"an engine cannot begin with {kind}")


def _files(names: Sequence[File | Device], fds: list[int]) -> list[OpenFile]:
    """Each with its descriptor; parts on claimed drives have none."""
    if len(fds) != sum(not _is_claimed(name) for name in names) or not fds:
        raise ProtocolError(f"{len(names)} files came with {len(fds)} descriptors")
    given = iter(fds)
    return [_claimed(name) if _is_claimed(name) else adopt(next(given), name.path) for name in names]


def _is_claimed(name: File | Device) -> TypeGuard[File]:
    return isinstance(name, File) and name.HasField("claimed_bytes")


def _claimed(name: File) -> OpenFile:
    return OpenFile(-1, name.path, name.claimed_bytes, 0, 0)


def _describe(channel: Channel, files: list[OpenFile]) -> None:
    from nvstreamd.engine.describe import facts, read_model
    from nvstreamd.wire.engine_pb2 import Described, FromEngine

    channel.send(FromEngine(described=Described(facts=facts(read_model(files)), path=files[0].path)))


def _pack(channel: Channel, command: Pack, files: list[OpenFile], blocks: list[OpenFile]) -> None:
    from nvstream.v1.models_pb2 import ImportProgress
    from nvstreamd.engine.describe import facts, read_model
    from nvstreamd.engine.packing import GivenDrives, targets_of
    from nvstreamd.engine.prompts import load_tokenizer
    from nvstreamd.weights.drive_files import open_files
    from nvstreamd.weights.importer import Importer, Progress
    from nvstreamd.weights.store import files_of
    from nvstreamd.wire.engine_pb2 import Described, FromEngine, PackProgress

    model = read_model(files)
    # What could not be loaded afterwards is refused before gigabytes are written.
    load_tokenizer(files[0].path, model.manifest.metadata, model.hyper.vocabulary)

    def report(progress: Progress) -> None:
        message = ImportProgress(bytes_done=progress.done, bytes_total=progress.total, bytes_resumed=progress.resumed)
        channel.send(FromEngine(pack_progress=PackProgress(progress=message)))

    importer = Importer(command.name, model.manifest, model.data, targets_of(command, blocks), Path(command.home))
    home = importer.run(report)
    with ExitStack() as stack:
        packed = read_model(open_files(files_of(home), GivenDrives(command.devices, blocks), stack))
        channel.send(FromEngine(described=Described(facts=facts(packed), path=str(home))))


def _serve(channel: Channel, command: Load, files: list[OpenFile], fds: list[int], notes: list[str]) -> None:
    """The only branch that imports kernels."""
    from nvstreamd.engine.claimed import ClaimedDrives
    from nvstreamd.engine.service import serve

    with ExitStack() as stack:
        serve(channel, command, files, ClaimedDrives(command.drives, fds), stack, notes)


if __name__ == "__main__":
    sys.exit(main())
