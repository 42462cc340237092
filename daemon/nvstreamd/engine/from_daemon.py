"""What is in the bytes that the daemon sent? The one place of the engine that reads its commands.

Nothing takes longer here than the parser has taken: what a caller sizes is looked at later, within bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nvstreamd.engine.commands import (
    Cancel,
    ClaimedDrive,
    Command,
    Describe,
    Device,
    Encode,
    File,
    Load,
    Options,
    Pack,
    Run,
    Written,
)
from nvstreamd.errors import ProtocolError
from nvstreamd.wire import engine_pb2 as wire


def parsed(data: bytes) -> Command:
    """The command in these bytes. Raises ProtocolError for one that no daemon of ours gives."""
    return command_of(wire.ToEngine.FromString(data))


def command_of(message: wire.ToEngine) -> Command:
    """The command as the engine has it. Raises ProtocolError."""
    kind = message.WhichOneof("command")
    if kind is None:
        raise ProtocolError("an empty command")
    return READERS[kind](getattr(message, kind))


def _if_set(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _run(said: wire.Run) -> Run:
    return Run(
        id=said.id,
        uid=said.uid,
        prompt=said.token_ids.ids if said.WhichOneof("prompt") == "token_ids" else _written(said, said.uid, True),
        options=_options(said.options),
        sent=said.sent_token_ids,
        share=said.share if said.HasField("share") else said.uid,
        weight=said.weight or 1.0,
        batch=said.batch,
        longest_context=said.longest_context,
    )


def _encode(said: wire.Encode) -> Encode:
    return Encode(said.id, said.uid, _written(said, said.uid, said.add_special),
                  said.share if said.HasField("share") else said.uid)


def _written(said: wire.Run | wire.Encode, uid: int, add_special: bool) -> Written:
    """What a call is to encode. The question has no number of its own: another call may ask the same."""
    is_chat = said.HasField("chat")

    def pack() -> bytes:
        question = wire.Prepare(encode=wire.Encode(uid=uid, add_special=add_special))
        if is_chat:
            question.encode.chat.CopyFrom(said.chat)
        else:
            question.encode.text = said.text
        return question.SerializeToString()

    if is_chat:
        return Written(said.chat.ByteSize(), len(said.chat.messages), pack)
    return Written(len(said.text.encode()), None, pack)


def _options(said: Any) -> Options:
    return Options(
        max_tokens=_if_set(said, "max_tokens"),
        sampling={field.name: value for field, value in said.sampling.ListFields()},
        stop=said.stop,
        json_schema=_if_set(said, "json_schema"),
        ignore_eos=said.ignore_eos,
        speculates=said.speculation if said.HasField("speculation") else True,
        logprobs=_if_set(said, "logprobs"),
    )


def _files(said: Any) -> list[File]:
    return [File(file.path, _if_set(file, "claimed_bytes")) for file in said]


def _pack(said: wire.Pack) -> Pack:
    devices = [Device(device.serial, device.nsid, device.path) for device in said.devices]
    return Pack(_files(said.files), said.name, said.home, list(said.directories), devices)


def _load(said: wire.Load) -> Load:
    return Load(
        files=_files(said.files),
        memory=said.memory,
        budget=said.budget,
        kv_budget=said.kv_budget,
        backends=tuple(said.backends),
        kernels=tuple(said.kernels),
        threads=said.threads,
        max_running=said.max_running,
        prefill_chunk=said.prefill_chunk,
        max_context=said.max_context,
        latency_seconds=said.latency_seconds,
        drives=[ClaimedDrive(drive.serial, drive.address, drive.way) for drive in said.drives],
        vram=said.vram,
    )


READERS: Final[dict[str, Callable[[Any], Command]]] = {
    "describe": lambda said: Describe(_files(said.files)),
    "pack": _pack,
    "load": _load,
    "run": _run,
    "cancel": lambda said: Cancel(said.id),
    "encode": _encode,
}
