"""What does an engine process do? The one thing its first command says: describe, pack, or load and serve."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nvstreamd.engine.channel import Channel
from nvstreamd.errors import NvstreamError, ProtocolError
from nvstreamd.weights.files import OpenFile, adopt, open_all
from nvstreamd.wire.engine_pb2 import File, Load, Pack, ToEngine


def main() -> int:
    """Exit status 0 when the daemon closed the channel or the job is done, 1 after a fatal error."""
    parser = argparse.ArgumentParser(prog="nvstreamd-engine")
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket pair's end")
    channel = Channel(socket.socket(fileno=parser.parse_args().channel))
    # Ctrl-C in a terminal reaches the whole process group; the daemon says when an engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command, fds = channel.receive_first()
        _dispatch(channel, command, fds)
    except NvstreamError as error:
        channel.fail(error)
        return 1
    except BrokenPipeError:
        return 1
    return 0


def _dispatch(channel: Channel, command: ToEngine, fds: list[int]) -> None:
    kind = command.WhichOneof("command")
    if kind == "describe":
        _describe(channel, _files(command.describe.files, fds))
    elif kind == "pack":
        _pack(channel, command.pack, _files(command.pack.files, fds))
    elif kind == "load":
        _serve(channel, command.load, _files(command.load.files, fds))
    else:
        raise ProtocolError(f"an engine cannot begin with {kind}")


def _files(names: Sequence[File], fds: list[int]) -> list[OpenFile]:
    if len(names) != len(fds) or not fds:
        raise ProtocolError(f"{len(names)} files came with {len(fds)} descriptors")
    return [adopt(fd, name.path) for name, fd in zip(names, fds, strict=True)]


def _describe(channel: Channel, files: list[OpenFile]) -> None:
    from nvstreamd.engine.describe import facts, read_model
    from nvstreamd.wire.engine_pb2 import Described, FromEngine

    channel.send(FromEngine(described=Described(facts=facts(read_model(files)), path=files[0].path)))


def _pack(channel: Channel, command: Pack, files: list[OpenFile]) -> None:
    from nvstream.v1.models_pb2 import ImportProgress
    from nvstreamd.engine.describe import facts, read_model
    from nvstreamd.weights.importer import Importer, Progress
    from nvstreamd.weights.store import files_of
    from nvstreamd.wire.engine_pb2 import Described, FromEngine, PackProgress

    model = read_model(files)

    def report(progress: Progress) -> None:
        message = ImportProgress(bytes_done=progress.done, bytes_total=progress.total, bytes_resumed=progress.resumed)
        channel.send(FromEngine(pack_progress=PackProgress(progress=message)))

    directories = [Path(directory) for directory in command.directories]
    importer = Importer(command.name, model.manifest, model.data, directories, Path(command.home))
    home = importer.run(report)
    with ExitStack() as stack:
        packed = read_model(open_all(files_of(home), stack))
        channel.send(FromEngine(described=Described(facts=facts(packed), path=str(home))))


def _serve(channel: Channel, command: Load, files: list[OpenFile]) -> None:
    """The only branch that imports kernels."""
    from nvstreamd.engine.service import serve

    with ExitStack() as stack:
        serve(channel, command, files, stack)


if __name__ == "__main__":
    sys.exit(main())
