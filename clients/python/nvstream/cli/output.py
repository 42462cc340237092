"""How do events become text for people and lines of JSON for programs?"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nvstream.errors import NvstreamError
from nvstream.events import Accepted, Delta, Event, Finished, Progress, Tier, Usage
from nvstream.facts import DaemonStatus, ImportProgress, Model
from nvstream.sizes import format_bytes, format_seconds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_KINDS: tuple[tuple[type[object], str], ...] = (
    (Accepted, "accepted"),
    (Progress, "progress"),
    (Delta, "delta"),
    (Finished, "finished"),
    (Model, "model"),
    (ImportProgress, "import_progress"),
    (DaemonStatus, "status"),
)

# A model's output is not to be trusted with the terminal: escape sequences can retitle, erase and paste.
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\n",
    ord("\t"): "\t",
    ord("\r"): "",
}


def printable(text: str) -> str:
    """The text without anything that a terminal would obey, but for line ends and tabs."""
    return text.translate(_CONTROLS)


def json_line(value: DataclassInstance) -> str:
    """One line of JSON: "event" names the kind, the other keys are the dataclass's fields.

    Only ASCII, so that no reader finds a line end inside; numbers that JSON lacks (infinity) are null.
    """
    kind = next(name for known, name in _KINDS if isinstance(value, known))
    return json.dumps({"event": kind, **_plain(asdict(value))}, allow_nan=False)


def note_line(note: str) -> str:
    """The line of JSON for what is to be said of a file that is no model."""
    return json.dumps({"event": "note", "text": note})


def error_line(error: NvstreamError) -> str:
    """The line of JSON that stands for a failed command."""
    violations = [asdict(one) for one in error.violations]
    fields = {
        "event": "error",
        "status": error.status,
        "message": error.message,
        "hint": error.hint,
        "retry_after": error.retry_after,
        "violations": violations,
        "links": list(error.links),
    }
    return json.dumps(fields)


def write(text: str) -> None:
    """Writes to stdout at once; on a terminal only what is printable. Raises BrokenPipeError."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_event(event: Event, as_json: bool) -> None:
    """Writes an event's line of JSON, or a delta's text and nothing for the others."""
    if as_json:
        write(json_line(event) + "\n")
    elif isinstance(event, Delta) and event.text:
        write(event.text)


def usage_lines(usage: Usage) -> list[str]:
    """The lines on the cost of a request, for --stats."""
    rate = usage.completion_tokens / usage.decode_seconds if usage.decode_seconds else 0.0
    tiers = [f"{format_bytes(usage.bytes_by_tier[one])} from {_TIERS[one]}" for one in usage.bytes_by_tier]
    return [
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached), "
        f"generated {usage.completion_tokens} ({rate:.2f} tokens/s)",
        f"queue {format_seconds(usage.queue_seconds)}, prefill {format_seconds(usage.prefill_seconds)}, "
        f"decode {format_seconds(usage.decode_seconds)}",
        f"{usage.weight_passes} passes over the weights" + "".join(f", {one}" for one in tiers),
        *([f"{format_bytes(usage.caused_bytes)} of what was read was for this request alone"]
          if usage.caused_bytes else []),
        *([f"guessed {usage.proposed_tokens} tokens, {usage.accepted_tokens} of them right"]
          if usage.proposed_tokens else []),
    ]


_TIERS = {Tier.VRAM: "VRAM", Tier.RAM: "RAM", Tier.NVME: "NVMe", Tier.UNSPECIFIED: "elsewhere"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
