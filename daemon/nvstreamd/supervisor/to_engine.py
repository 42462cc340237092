"""How does a command become what an engine reads? The one place of the supervisor that writes its protocol."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from nvstreamd.supervisor import commands
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.wire.engine_pb2 import Cancel, ClaimedDrive, Describe, Device, Encode, File, Load, Pack, Run, ToEngine
from nvstreamd.wire.frames import frame


def framed(command: commands.Command) -> bytes:
    """The command's frame. Raises ProtocolError when it is too large for one."""
    return frame(message_of(command).SerializeToString())


def message_of(command: commands.Command) -> ToEngine:
    """The command as an engine knows it."""
    match command:
        case commands.Run():
            return ToEngine(run=_run(command.order, command.number, command.sent))
        case commands.Encode():
            return ToEngine(encode=_encode(command.order, command.number))
        case commands.Cancel():
            return ToEngine(cancel=Cancel(id=command.number))
        case commands.Describe():
            return ToEngine(describe=Describe(files=_named(command.files)))
        case commands.Load():
            return ToEngine(load=_load(command))
        case commands.Pack():
            devices = [Device(serial=drive.serial, nsid=drive.nsid, path=drive.path) for drive in command.drives]
            return ToEngine(pack=Pack(files=_named(command.files), name=command.name, home=command.home,
                                      directories=command.directories, devices=devices))


def digest_of(order: commands.Order) -> bytes:
    """The digest that a call keeps when it is sent again: of neither number nor seed, nor what came of it."""
    plain: Run | Encode
    if isinstance(order, commands.RunOrder):
        plain = _run(order, 0, ())
        plain.options.sampling.ClearField("seed")
    else:
        plain = _encode(order, 0)
    return sha256(plain.SerializeToString(deterministic=True)).digest()


def _run(order: commands.RunOrder, number: int, sent: Sequence[int]) -> Run:
    terms = order.terms
    run = Run(id=number, uid=order.uid, share=terms.share, weight=terms.weight, batch=terms.batch,
              longest_context=terms.longest_context, sent_token_ids=sent)
    options: Any = order.options
    run.options.CopyFrom(options)
    if not run.options.sampling.HasField("seed"):
        run.options.sampling.seed = terms.seed
    _put(order.prompt, run)
    return run


def _encode(order: commands.EncodeOrder, number: int) -> Encode:
    encode = Encode(id=number, uid=order.uid, share=order.share, add_special=order.add_special)
    _put(order.prompt, encode)
    return encode


def _put(prompt: commands.Prompt, message: Run | Encode) -> None:
    if isinstance(prompt.content, str):
        message.text = prompt.content
    else:
        getattr(message, prompt.kind).CopyFrom(prompt.content)


def _load(command: commands.Load) -> Load:
    of = command.settings
    drives = [ClaimedDrive(serial=drive.serial, address=drive.address, way=drive.grant) for drive in command.drives]
    return Load(files=_named(command.files), backends=command.backends, drives=drives, memory=of.memory,
                budget=of.budget, kv_budget=of.kv_budget, kernels=of.kernels, threads=of.threads,
                max_running=of.max_running, prefill_chunk=of.prefill_chunk, max_context=of.max_context,
                latency_seconds=of.latency_seconds, vram=of.vram)


def _named(files: Sequence[OpenFile]) -> list[File]:
    """The files as an engine's first command names them; what has no descriptor is on a claimed drive."""
    return [File(path=file.path) if file.fd >= 0 else File(path=file.path, claimed_bytes=file.size) for file in files]
