"""What has the administrator decided? The configuration file and the command line, checked."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from nvstreamd.errors import ConfigError
from nvstreamd.names import ModelName

UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "KB": 10**3, "MB": 10**6,
         "GB": 10**9, "TB": 10**12}
# nobody, also as the kernel shows uids that a namespace does not have, and -1 of 16 bits.
SPECIAL_UIDS = (65534, 65535)
# -1 and -2 are no uids.
HIGHEST_UID = (1 << 32) - 3
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: object) -> object:
    """Bytes of "60MiB", "1.5 GiB" or a plain number; anything else is left for pydantic to refuse."""
    if not isinstance(text, str):
        return text
    match = SIZE.fullmatch(text)
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"{text!r} is no size: write 60MiB, 1.5GiB or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].upper()])


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, lt=1 << 50)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Checked):
    """A model that is loaded at start. `path` is a GGUF (its first part) or a packed NAME.nvs directory."""

    name: ModelName
    path: Path
    budget: Size | None = None
    kv_budget: Size | None = None


class DriveConfig(_Checked):
    """A drive that nvstreamd may take for itself: whatever is on it is the administrator's to lose."""

    serial: Annotated[str, Field(min_length=1, max_length=20)]


class QuotaConfig(_Checked):
    """The quota of a user, of the members of a group, or (with neither) of everybody else.

    `weight` is the share of an engine that is busy, `priority` batch waits for all others. Of the rest None is no
    limit: tokens of prompts and answers, `requests` that are open at once, `longest_context` in tokens.
    """

    user: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    group: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    priority: Literal["interactive", "batch"] = "interactive"
    requests: Annotated[int, Field(ge=0)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_day: Annotated[int, Field(ge=0)] | None = None
    longest_context: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _names_one(self) -> QuotaConfig:
        if self.user is not None and self.group is not None:
            raise ValueError("a quota is for a user or for a group: name one of them")
        return self


class EngineUids(_Checked):
    """A range of uids that are nobody's: the first is the daemon's, to end what the others leave, the rest engines'."""

    first: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=3, le=4096)]

    @model_validator(mode="after")
    def _has_no_special_one(self) -> Self:
        span = range(self.first, self.first + self.count)
        if any(uid in span for uid in SPECIAL_UIDS) or span.stop > HIGHEST_UID:
            raise ValueError(f"{span.start} to {span.stop - 1} has uids with a meaning of their own, like nobody's")
        return self


class Config(_Checked):
    """Everything that can be configured. Sizes are in bytes or written as 60MiB."""

    socket: Path
    store: Path
    claims: Path
    usage: Path
    quotas: tuple[QuotaConfig, ...] = ()
    drives: tuple[DriveConfig, ...] = ()
    unsafe_noiommu: bool = False
    memory: Size = 1 << 30
    kv_memory: Size | None = None
    model_directories: tuple[Path, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    backends: Annotated[tuple[Literal["nvme_host", "uring", "pread"], ...], Field(min_length=1)] = (
        "nvme_host", "uring", "pread")
    kernels: Annotated[tuple[Literal["gpu", "cpu", "torch"], ...], Field(min_length=1)] = ("gpu", "cpu", "torch")
    vram: Size | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(default_factory=lambda: len(os.sched_getaffinity(0)))
    max_running: Annotated[int, Field(ge=1, le=256)] = 8
    max_queued: Annotated[int, Field(ge=0, le=10000)] = 64
    prefill_chunk: Annotated[int | None, Field(ge=8, le=8192)] = None
    latency: Annotated[float | None, Field(gt=0, le=3600)] = None
    max_context: Annotated[int, Field(ge=0)] = 0
    admin_group: str | None = None
    engine_user: str | None = None
    engine_uids: EngineUids | None = None
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    engine_restarts: Annotated[int, Field(ge=0, le=100)] = 5

    @model_validator(mode="after")
    def _uids_have_a_group(self) -> Self:
        if self.engine_uids is not None and self.engine_user is None:
            raise ValueError("engine_uids needs engine_user, who imports models and whose group engines have")
        return self


def runtime_directory() -> Path:
    """Where the socket goes by default: /run/nvstreamd for root, the caller's own runtime directory otherwise."""
    if os.getuid() == 0:
        return Path("/run/nvstreamd")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or temporary_directory()) / "nvstreamd"


def temporary_directory() -> Path:
    """The directory that stands in for a user's runtime directory where the system gave him none."""
    return Path(f"/tmp/nvstreamd-{os.getuid()}")


def state_directory() -> Path:
    """Where packed models and the journal of claims go by default."""
    if os.getuid() == 0:
        return Path("/var/lib/nvstreamd")
    home = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local/share"))
    return home / "nvstreamd"


def load_config(path: Path | None, overrides: dict[str, Any]) -> Config:
    """The file's values under the command line's. Raises ConfigError naming file and key."""
    values: dict[str, Any] = {"socket": runtime_directory() / "nvstreamd.sock", "store": state_directory() / "models",
                              "claims": state_directory() / "claims"}
    try:
        if path is not None:
            values |= tomllib.loads(path.read_text())
        values |= overrides
        # Beside the models, which only the daemon and its engines write.
        values.setdefault("usage", Path(str(values["store"])).parent / "usage.json")
        return Config.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", "mend the file or name another with --config") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path or 'command line'}: {key}: {first['msg']}",
                          "see docs/administrator.md, Configuration") from error
