"""How does a user send us a machine? As one text file that holds what the inventory read there, and nothing else.

One line each: PATH<TAB>CONTENT for a file, PATH<TAB>-> TARGET for a symbolic link, PATH<TAB>/ for what was only seen to
be there. In content a line end, a tab, a backslash and every byte that is not printable ASCII are escaped: \\n, \\t,
two backslashes, \\xNN. What is no file lies below ANSWERS: what blkid(8) said of a disk (its status, then its output),
and whether the kernel holds a device. Serial numbers and places of mounts are in it as they are.
"""

from __future__ import annotations

import re

from nvstreamd.hardware.facts import Machine
from nvstreamd.hardware.inventory import take
from nvstreamd.hardware.system import Ran, System

ANSWERS = "answers"
PRESENT = "/"
LINK = "-> "
ESCAPED = {"\\": "\\\\", "\n": "\\n", "\t": "\\t"}
ESCAPE = re.compile(r"\\(n|t|\\|x[0-9a-f]{2})")


class Recorder(System):
    """A machine that notes what is asked of it; it can be looked at and not be changed."""

    def __init__(self, system: System) -> None:
        super().__init__(system.root)
        self._system = system
        self._lines: dict[str, str] = {}

    @property
    def tree(self) -> str:
        """The notes so far, a line each, sorted by path."""
        return "".join(f"{path}\t{content}\n" for path, content in sorted(self._lines.items()))

    def read(self, path: str) -> str | None:
        """A file's text, noted; None, and no note, when it cannot be read."""
        text = self._system.read(path)
        if text is not None:
            self._lines[path] = escape(text.encode())
        return text

    def read_bytes(self, path: str) -> bytes | None:
        """A file's bytes, noted; None, and no note, when they cannot be read."""
        content = self._system.read_bytes(path)
        if content is not None:
            self._lines[path] = escape(content)
        return content

    def link(self, path: str) -> str | None:
        """The last part of a link's target, noted; None, and no note, when there is none."""
        target = self._system.link(path)
        if target is not None:
            self._lines[path] = f"{LINK}{target}"
        return target

    def names(self, path: str) -> list[str]:
        """A directory's names, sorted; each is noted as a path that is there."""
        found = self._system.names(path)
        for name in found:
            self._lines.setdefault(f"{path}/{name}", PRESENT)
        return found

    def exists(self, path: str) -> bool:
        """True when there is such a path, which then is noted."""
        found = self._system.exists(path)
        if found:
            self._lines.setdefault(path, PRESENT)
        return found

    def is_held(self, device: str) -> bool | None:
        """True when the kernel has the device in use, None when it cannot be asked; the answer is noted either way."""
        held = self._system.is_held(device)
        self._lines[f"{ANSWERS}/held/{device}"] = str(held)
        return held

    def run(self, *command: str) -> Ran:
        """Runs the program and notes its status and output, also when it failed."""
        ran = self._system.run(*command)
        self._lines[answer_of(*command)] = escape(f"{ran.status}\n{ran.output}".encode())
        return ran

    def write(self, path: str, text: str) -> None:
        """Raises PermissionError, always: a machine that is recorded is not changed."""
        raise PermissionError(f"{path}: a machine that is recorded is not changed")


def record(system: System) -> tuple[Machine, str]:
    """The machine's facts, and the tree from which they can be taken again."""
    recorder = Recorder(system)
    return take(recorder), recorder.tree


def answer_of(*command: str) -> str:
    """Where the answer to a command about a device is."""
    return f"{ANSWERS}/{command[0]}/{command[-1].rpartition('/')[2]}"


def escape(content: bytes) -> str:
    """Bytes as the content of a line."""
    line = "".join(ESCAPED.get(each) or (each if " " <= each <= "~" else _hex(each))
                   for each in content.decode("latin-1"))
    # Content that looks like a link, or like what has none.
    return _hex(line[0]) + line[1:] if line == PRESENT or line.startswith(LINK) else line


def _hex(character: str) -> str:
    return f"\\x{ord(character):02x}"


def unescape(text: str) -> bytes:
    """The bytes of a line's content. A backslash before anything else stands for itself."""
    plain = {escaped[1:]: character for character, escaped in ESCAPED.items()}

    def character(found: re.Match[str]) -> str:
        return plain.get(found[1]) or chr(int(found[1][1:], 16))

    return ESCAPE.sub(character, text).encode("latin-1")
