"""What is in a function's configuration space of 4096 bytes? Its list of extended capabilities, as a test wants it."""

from __future__ import annotations

FIRST, NBYTES = 0x100, 4096


def configuration(*capabilities: tuple[int, int, bytes]) -> bytes:
    """`capabilities` are identifier, version and what lies behind the header, one after the other."""
    space = bytearray(NBYTES)
    at = FIRST
    for number, (kind, version, content) in enumerate(capabilities):
        following = at + 4 + len(content) + -len(content) % 4
        link = following if number + 1 < len(capabilities) else 0
        space[at : at + 4] = (link << 20 | version << 16 | kind).to_bytes(4, "little")
        space[at + 4 : at + 4 + len(content)] = content
        at = following
    return bytes(space)
