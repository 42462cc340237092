"""What does the daemon tell an engine to do? In the engine's own words; `from_daemon` reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model, in the order of the descriptors that came. One on a claimed drive has none.

    Of such a one `claimed_bytes` tells the size, in bytes up to the part's end.
    """

    path: str
    claimed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A drive as a block device, open for reading and writing; `path` is for messages."""

    serial: str
    nsid: int
    path: str


@dataclass(frozen=True, slots=True)
class ClaimedDrive:
    """A drive whose descriptors came behind those of the files; `way` says which those are, `address` is for messages.
    """

    serial: str
    address: str
    way: str


@dataclass(frozen=True, slots=True)
class Describe:
    """Tell what these files need."""

    files: Sequence[File]


@dataclass(frozen=True, slots=True)
class Pack:
    """Import these files: into `directories`, or onto `devices`; the manifest goes to `home`."""

    files: Sequence[File]
    name: str
    home: str
    directories: Sequence[str]
    devices: Sequence[Device]


@dataclass(frozen=True, slots=True)
class Load:
    """Serve the model in these files: see engine.proto, Load. Sizes are in bytes; 0 is for nobody having said."""

    files: Sequence[File]
    memory: int
    budget: int
    kv_budget: int
    backends: Sequence[str]
    kernels: Sequence[str]
    threads: int
    max_running: int
    prefill_chunk: int
    max_context: int
    latency_seconds: float
    drives: Sequence[ClaimedDrive]
    vram: int


@dataclass(frozen=True, slots=True)
class Written:
    """A text, or a conversation of so many `messages`, whose ids a worker is to find. `size` is in bytes.

    `pack` makes the question to the worker: only once the size was found to be one that can be answered, for it takes
    as long as that is large. Nothing in this process reads what was written.
    """

    size: int
    messages: int | None
    pack: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Options:
    """How a request is to be continued, not looked at yet: see nvstream.v1.Options. None is for what was not said.

    Of `sampling` there is what was said, by the names that sampling.Sampling has. `stop` is as it came: a list of a
    million would be made before anybody could refuse it.
    """

    max_tokens: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    json_schema: str | None = None
    ignore_eos: bool = False
    speculates: bool = True
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Generate for a request of `uid`, behind the tokens that another engine has `sent`.

    It uses the share of the uid `share`, which has `weight`; a `batch` request waits for all others.
    `longest_context` is in tokens, 0: what the model allows. Ids in `prompt` and `sent` are as they came.
    """

    id: int
    uid: int
    prompt: Written | Sequence[int]
    options: Options
    sent: Sequence[int]
    share: int
    weight: float
    batch: bool
    longest_context: int


@dataclass(frozen=True, slots=True)
class Encode:
    """Tell the ids of what `uid` has written."""

    id: int
    uid: int
    written: Written
    share: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this call any more."""

    id: int


Call = Run | Encode
First = Describe | Pack | Load
Command = First | Call | Cancel
