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

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.commands import Command, Describe, Device, File, Load, Pack
from nvstreamd.engine.walls import make_no_more_sockets, raise_walls
from nvstreamd.errors import CardLost, NvstreamError, ProtocolError
from nvstreamd.systemd import log_to_stderr
from nvstreamd.text import places
from nvstreamd.weights.packed.files import OpenFile, adopt

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
    except CardLost as error:
        # It has been said.
        log.error("the engine ends: %s", error)
        return 1
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


def _dispatch(channel: Channel, command: Command, fds: list[int], missing: list[str]) -> None:
    """Does what it was started for; of `missing` walls `status` tells, or for a short job the log."""
    if not isinstance(command, Describe | Pack | Load):
        raise ProtocolError(f"an engine cannot begin with {type(command).__name__}")
    log_to_stderr(about=Path(command.files[0].path).stem if command.files else "no model")
    if not isinstance(command, Load):
        # A card is opened by those that load alone.
        for note in (*missing, *make_no_more_sockets()):
            log.warning("%s", note)
    match command:
        case Describe():
            _describe(channel, _files(command.files, fds))
        case Pack():
            both = _files([*command.files, *command.devices], fds)
            files = len(command.files)
            _pack(channel, command, both[:files], both[files:])
        case Load():
            own = sum(_claimed(file) is None for file in command.files)
            _serve(channel, command, _files(command.files, fds[:own]), fds[own:], missing)


def _files(names: Sequence[File | Device], fds: list[int]) -> list[OpenFile]:
    """Each with its descriptor; parts on claimed drives have none."""
    if len(fds) != sum(_claimed(name) is None for name in names) or not fds:
        raise ProtocolError(f"{len(names)} files came with {len(fds)} descriptors")
    given = iter(fds)
    return [OpenFile(-1, name.path, size, 0, 0) if (size := _claimed(name)) is not None
            else adopt(next(given), name.path) for name in names]


def _claimed(name: File | Device) -> int | None:
    """The bytes of what is on a drive that the daemon claimed, None for what has a descriptor."""
    return name.claimed_bytes if isinstance(name, File) else None


def _describe(channel: Channel, files: list[OpenFile]) -> None:
    from nvstreamd.engine.describe import facts, read_model
    from nvstreamd.engine.to_daemon import described_message

    channel.send(described_message(facts(read_model(files)), files[0].path))


def _pack(channel: Channel, command: Pack, files: list[OpenFile], blocks: list[OpenFile]) -> None:
    from nvstreamd.engine.describe import facts, read_model
    from nvstreamd.engine.packing import GivenDrives, targets_of
    from nvstreamd.engine.prompts import load_tokenizer
    from nvstreamd.engine.to_daemon import described_message, progress_message
    from nvstreamd.weights.packed.drive_files import open_files
    from nvstreamd.weights.packed.importer import Importer, Progress
    from nvstreamd.weights.packed.store import files_of

    model = read_model(files)
    # What could not be loaded afterwards is refused before gigabytes are written.
    load_tokenizer(files[0].path, model.manifest.metadata, model.hyper.vocabulary)

    def report(progress: Progress) -> None:
        channel.send(progress_message(progress.done, progress.total, progress.resumed))

    importer = Importer(command.name, model.manifest, model.data, targets_of(command, blocks), Path(command.home))
    home = importer.run(report)
    with ExitStack() as stack:
        packed = read_model(open_files(files_of(home), GivenDrives(command.devices, blocks), stack))
        channel.send(described_message(facts(packed), str(home)))


def _serve(channel: Channel, command: Load, files: list[OpenFile], fds: list[int], notes: list[str]) -> None:
    """The only branch that imports kernels."""
    from nvstreamd.engine.claimed import ClaimedDrives
    from nvstreamd.engine.service import serve

    with ExitStack() as stack:
        serve(channel, command, files, ClaimedDrives(command.drives, fds), stack, notes)


if __name__ == "__main__":
    sys.exit(main())
