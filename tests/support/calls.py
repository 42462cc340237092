"""How do tests make what a daemon's supervisor passes on: orders as clients give them, reports as engines make them?"""

from __future__ import annotations

from google.protobuf.message import Message

from nvstream.v1 import inference_pb2 as public
from nvstreamd.supervisor.commands import EncodeOrder, Prompt, RunOrder, Terms
from nvstreamd.supervisor.events import Delta
from nvstreamd.supervisor.from_engine import report_of
from nvstreamd.supervisor.reports import Report
from nvstreamd.wire.engine_pb2 import FromEngine


def run_order(uid: int, text: str) -> RunOrder:
    """A request without options."""
    return RunOrder(uid, Prompt("text", text), public.Options(), Terms(share=uid))


def encode_order(uid: int, text: str) -> EncodeOrder:
    """A text whose ids are wanted."""
    return EncodeOrder(uid, uid, Prompt("text", text))


def report(**kind: Message) -> Report:
    """What the daemon takes from an engine's message of that kind."""
    return report_of(FromEngine(**kind))


def delta_of(message: public.Delta) -> Delta:
    """A delta as the daemon has it."""
    return Delta(message, message.token_ids, message.text, message.ByteSize())
