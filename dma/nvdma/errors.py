"""What can go wrong while bytes are moved, and what can be done about it?

Every error says what failed (file, field, number) and ends with the remedy, which is also in ``hint``.
"""

from __future__ import annotations

import os


class DmaError(Exception):
    """Base of every error of nvdma. ``hint`` says what to do; an instance may carry a more precise one."""

    hint: str = "see the log of the engine for what preceded this"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        if hint is not None:
            self.hint = hint
        self.what = what
        super().__init__(f"{what}; {self.hint}")


class BackendUnavailable(DmaError):
    """A backend cannot be used here. ``reason`` says why in one sentence."""

    hint = "choose another backend, 'pread' works everywhere"

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason, hint=hint)


class ReadError(DmaError):
    """One read failed. ``tag`` names it (None when the failure came before any read); others go on."""

    def __init__(self, what: str, *, path: str, offset: int, tag: int | None) -> None:
        self.path = path
        self.offset = offset
        self.tag = tag
        super().__init__(what)


class ReadFailed(ReadError):
    """The kernel or the drive refused a read; ``errno`` is the number of errno(3)."""

    hint = "look for errors of the drive in `dmesg` and check the descriptor and the file's permissions"

    def __init__(self, path: str, offset: int, length: int, errno: int, *, tag: int | None = None) -> None:
        self.length = length
        self.errno = errno
        what = f"{path}: reading {length} bytes at offset {offset} failed: {os.strerror(errno)}"
        super().__init__(what, path=path, offset=offset, tag=tag)


class ShortRead(ReadError):
    """The file ended before the size it had when it was opened; ``wanted`` and ``got`` are in bytes."""

    hint = "the file was truncated or changed: restore it and load the model again"

    def __init__(self, path: str, offset: int, wanted: int, got: int, *, tag: int | None = None) -> None:
        self.wanted = wanted
        self.got = got
        what = f"{path}: wanted {wanted} bytes at offset {offset}, got {got}"
        super().__init__(what, path=path, offset=offset, tag=tag)


class InvalidRead(DmaError):
    """A read breaks the contract of its backend (alignment, range, tag): a fault of the caller."""

    hint = "plan reads with the backend's facts (alignment, max_read) and inside the file and the arena"


class DeadlineExceeded(DmaError):
    """A wait ended without what it waited for; ``waited_for`` names it, ``timeout`` is in seconds."""

    hint = "check the drive with `dmesg` and `smartctl`, or allow more time"

    def __init__(self, waited_for: str, timeout: float) -> None:
        self.waited_for = waited_for
        self.timeout = timeout
        super().__init__(f"waited {timeout:g} s for {waited_for}")


class NothingInFlight(DmaError):
    """``wait`` was called while no read was in flight: it could never end."""

    hint = "submit a read first"


class QueueFull(DmaError):
    """More reads were submitted than the backend's depth leaves room for; none of them was taken."""

    hint = "wait for completions, or open the backend with a larger depth"

    def __init__(self, depth: int, in_flight: int, submitted: int) -> None:
        super().__init__(f"queue depth {depth}: {in_flight} reads in flight and {submitted} more submitted")


class ArenaExhausted(DmaError):
    """The arena's memory cannot be had."""

    hint = "lower the memory budget or free memory (`free -m`, `ulimit -v`, the cgroup's memory.max)"


class ArenaBusy(DmaError):
    """The arena cannot be closed because somebody still looks at its bytes."""

    hint = "release every memoryview, array and backend of this arena, then close it again"


class DeviceGone(DmaError):
    """A device's registers read all ones: it was unplugged, its link is down or its memory space is off."""

    hint = "check the drive's seat and `dmesg` for its PCIe link, then claim it again"

    def __init__(self, device: str) -> None:
        self.device = device
        super().__init__(f"{device}: its registers read all ones, it is gone from the bus")


class ControllerFatal(DmaError):
    """An NVMe controller cannot go on: only a reset, after which every queue must be created again, may help."""

    hint = "reset the controller; when that does not help, power the machine off and replace the drive"


class ControllerRefused(DmaError):
    """A controller, or what it says of itself, is nothing this driver can work with."""

    hint = "give the drive back to the kernel's driver and use the backend 'uring'"


class NamespaceRefused(DmaError):
    """A namespace cannot be read by this driver; the controller's others may be fine."""

    hint = "format the namespace with 512 or 4096 bytes a block and no metadata (`nvme format`), or use 'uring'"


class CommandFailed(DmaError):
    """An NVMe command completed with an error.

    `code_type` and `code` are the status' SCT and SC, `name` the specification's for both; `lba` is the first logical
    block of a read or write. `do_not_retry`: the same command would fail again.
    """

    hint = "look at the drive's error log and health (`nvstreamd doctor`)"

    def __init__(self, command: str, code_type: int, code: int, name: str, *, do_not_retry: bool,
                 lba: int | None = None) -> None:
        self.command, self.code_type, self.code, self.name = command, code_type, code, name
        self.do_not_retry, self.lba = do_not_retry, lba
        where = "" if lba is None else f" at LBA {lba}"
        again = ", do not retry" if do_not_retry else ""
        super().__init__(f"{command}{where} failed: {name} (status {code_type:#x}/{code:#04x}{again})")


class UnknownCompletion(DmaError):
    """A controller completed a command that is not outstanding: it was completed before, or never submitted."""

    hint = "distrust what it has read since, reset the controller and look for a firmware update"

    def __init__(self, queue: str, cid: int) -> None:
        self.cid = cid
        super().__init__(f"{queue}: completion of command {cid:#06x}, which is not outstanding")


class QueueClosed(DmaError):
    """A queue was used after it was deleted or its controller reset."""

    hint = "create the queue again"


class CommandRefused(ReadError):
    """A drive of ours refused a read; ``cause`` has the status it gave."""

    hint = CommandFailed.hint

    def __init__(self, path: str, offset: int, cause: CommandFailed, *, tag: int | None = None) -> None:
        self.cause = cause
        super().__init__(f"{path}: reading at offset {offset}: {cause.what}", path=path, offset=offset, tag=tag)


class GpuError(DmaError):
    """Base of every error of a card."""


class GpuUnavailable(GpuError):
    """There is no card that can be used, or what drives it is missing."""

    hint = "the CPU's kernels work everywhere; nvstreamd doctor says what a card needs"


class GpuOutOfMemory(GpuError):
    """The card has less memory left than was asked for."""

    hint = "give the model less VRAM, or end what else is on the card (nvidia-smi)"


class GpuFailed(GpuError):
    """A call of the card's driver failed. Most causes leave nothing of the context that can be used."""

    hint = "look at dmesg for Xid messages; the engine is started again"
