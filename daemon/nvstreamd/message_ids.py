"""Which lines of the log does a program wait for, and by which number does it find them? `journalctl MESSAGE_ID=...`.

Each is given to a logger as `extra`; nvstreamd.systemd makes MESSAGE_ID of it. A number is never given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MessageId = Mapping[str, str]

LISTENING: Final[MessageId] = {"message_id": "7bddab8d1a4f48208bd724157f94c6b8"}
DRAINING: Final[MessageId] = {"message_id": "c3db4f115f9340cc8164185a3a7723a0"}
CLAIMED: Final[MessageId] = {"message_id": "3265700a4088466ea2186736a86eb548"}
RELEASED: Final[MessageId] = {"message_id": "b1ff445a44174b5ea4e9eaad70519f06"}
# The line ends with the state, as models.proto names it.
MODEL_STATE: Final[MessageId] = {"message_id": "f029929d6d374370b9dc30b8e3aec4d6"}
ENGINE_LOST: Final[MessageId] = {"message_id": "9d0ac29602ce49978b23f085e0eb9e6e"}
