"""What is an engine told? Orders as the daemon has them, and the commands that they become; `to_engine` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message

from nvstreamd.weights.packed.files import OpenFile


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is loaded with: ceilings in bytes, 0 where it divides `memory` itself, and how it is to compute.

    `backends` and `kernels` are in order of preference; `max_context` in tokens, 0: what the model allows.
    """

    memory: int
    budget: int
    kv_budget: int
    backends: Sequence[str]
    kernels: Sequence[str]
    threads: int
    max_running: int
    prefill_chunk: int
    latency_seconds: float
    max_context: int
    vram: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a user's quota gives a request: the share that it uses, the weight and class of that, its longest context.

    `longest_context` is in tokens, 0: what the model allows. `seed` is for a request that brings none.
    """

    share: int
    weight: float = 1.0
    batch: bool = False
    longest_context: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued, or encoded.

    `content` is a text, or a message of nvstream.v1 (TokenIds, ChatInput) that goes to the engine as the client sent
    it: nothing here reads it. A list of ids would be many times as large as Python's.
    """

    kind: Literal["text", "token_ids", "chat"]
    content: str | Message


@dataclass(frozen=True, slots=True)
class RunOrder:
    """A request of `uid`. `options`, an nvstream.v1.Options, are the engine's to read, and to refuse."""

    uid: int
    prompt: Prompt
    options: Message
    terms: Terms


@dataclass(frozen=True, slots=True)
class EncodeOrder:
    """A text or conversation of `uid` whose ids are asked for; `share` is as in Terms."""

    uid: int
    share: int
    prompt: Prompt
    add_special: bool = False


Order = RunOrder | EncodeOrder


@dataclass(frozen=True, slots=True)
class PassedDrive:
    """A claimed drive whose descriptors go to the engine; `grant` says which they are, `address` is for messages."""

    serial: str
    address: str
    grant: str


@dataclass(frozen=True, slots=True)
class BlockDrive:
    """A drive as a block device, open for reading and writing; `path` is for messages."""

    serial: str
    nsid: int
    path: str


@dataclass(frozen=True, slots=True)
class Describe:
    """Tell what these files need."""

    files: Sequence[OpenFile]


@dataclass(frozen=True, slots=True)
class Pack:
    """Import these files: into `directories`, or onto `drives`; the manifest goes to `home`."""

    files: Sequence[OpenFile]
    name: str
    home: str
    directories: Sequence[str] = ()
    drives: Sequence[BlockDrive] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """Serve the model in these files. A file without a descriptor is on one of the `drives`."""

    settings: Settings
    files: Sequence[OpenFile]
    backends: Sequence[str]
    drives: Sequence[PassedDrive] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Generate for this request, behind the tokens that its client was `sent` by another engine."""

    number: int
    order: RunOrder
    sent: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Encode:
    """Tell the ids of this text."""

    number: int
    order: EncodeOrder


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this call any more."""

    number: int


Command = Describe | Pack | Load | Run | Encode | Cancel
