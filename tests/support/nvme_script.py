"""How does the scripted NVMe controller misbehave?"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto


class Effect(Enum):
    """What happens to a command instead of its completion."""

    FAIL = auto()  # it completes with `status`, not carried out
    LOSE = auto()  # it is carried out, and its completion never comes
    DUPLICATE = auto()  # its completion comes twice
    FATAL = auto()  # the controller sets CSTS.CFS and stops
    VANISH = auto()  # the controller is pulled out


@dataclass(frozen=True, slots=True)
class Rule:
    """`effect` on the next command with `opcode` of an I/O queue, or of the admin queue."""

    effect: Effect
    opcode: int
    admin: bool = False
    status: int = 0


@dataclass(slots=True)
class Script:
    """How the controller misbehaves. `manual`: I/O commands wait for `ScriptedDevice.step`.

    `reads_until_ready`: of CSTS, before it follows CC. `vanish_at`: accesses to registers, after which it is gone.
    """

    rules: list[Rule] = field(default_factory=list)
    stuck_enable: bool = False
    stuck_disable: bool = False
    stuck_shutdown: bool = False
    fatal_enable: bool = False
    reverse: bool = False
    manual: bool = False
    reads_until_ready: int = 1
    vanish_at: int | None = None
