"""Which models do the configured directories offer, under which names, and what is passed over and why?

Of sources with one name the configuration comes first, then the store, then directories in their order. What comes
later is offered too, as NAME@DIRECTORY: nothing is hidden without a word.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvstreamd.names import RULE, is_name, named, stem_of
from nvstreamd.supervisor.scan import Found, Scanner
from nvstreamd.text import bounded, places
from nvstreamd.weights.packed.files import SPLIT_NAME

log = logging.getLogger(__name__)

# How long a call waits for a look at the directories, before it takes what the last one saw.
LOOK_SECONDS = 2.0
# The same where an older look did not see what is asked for.
SEARCH_SECONDS = 60.0
# A list of them is a message that every gRPC client takes: 4 MiB.
MOST_MODELS = 5000
LATE = f"looking at the directories of models takes more than {LOOK_SECONDS:g} s: the list may be an older one"
MOST_NOTES = 20
NOTE_BYTES = 300


@dataclass(frozen=True, slots=True)
class Offers:
    """{name: path} of what can be loaded, {name: path} of imports that have not finished, and what is to be said."""

    paths: dict[str, Path] = field(default_factory=dict)
    unfinished: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def offers_of(configured: Sequence[tuple[str, Path]], found: Found) -> Offers:
    """The offers of configured models and of those that were found."""
    paths = dict(configured)
    notes, later = list(found.passed_over), []
    for path in found.models[:MOST_MODELS]:
        name = name_of(path)
        if name in paths and paths[name].absolute() == path.absolute():
            continue
        if not is_name(name):
            notes.append(f"{path} is not offered: {RULE}")
        elif name in paths:
            later.append((name, path))
        else:
            paths[name] = path
    for name, path in later:
        notes.append(_add_later(name, path, paths))
    if len(found.models) > MOST_MODELS:
        notes.append(f"{len(found.models)} models are too many: {MOST_MODELS} are offered")
    unfinished = {stem_of(path): path for path in found.unfinished}
    notes += [f"the import of {name} has not finished: run it again, or remove {path}"
              for name, path in unfinished.items()]
    return Offers(paths, unfinished, tuple(_bounded(notes)))


def name_of(path: Path) -> str:
    """The name under which a file or a packed directory is offered."""
    split = SPLIT_NAME.match(path.name)
    return named(split["stem"]) if split else stem_of(path)


def _add_later(name: str, path: Path, paths: dict[str, Path]) -> str:
    """Offers a second model of a name under another, if that is free; returns what is to be said."""
    qualified = f"{name}@{path.parent.name}"
    if not is_name(qualified) or qualified in paths:
        return f"{path} is not offered: {name} is {paths[name]}; rename it"
    paths[qualified] = path
    return f"{name} is {paths[name]}; {path} is offered as {qualified}"


def _bounded(notes: Sequence[str]) -> Iterator[str]:
    for note in notes[:MOST_NOTES]:
        yield bounded(note, NOTE_BYTES)
    if len(notes) > MOST_NOTES:
        yield f"{len(notes) - MOST_NOTES} more files and directories of models have such notes"


class Watched:
    """Offers as of the last look. A look is a thread's work: directories may be large, and disks slow or gone."""

    def __init__(self, configured: Sequence[tuple[str, Path]], directories: Sequence[Path]) -> None:
        self.offers = Offers(dict(configured))
        self._configured = configured
        self._scanner = Scanner(directories)
        self._found: Found | None = None
        self._looking: asyncio.Future[None] | None = None
        self._begun = float("-inf")
        self._is_late = False

    @property
    def notes(self) -> tuple[str, ...]:
        """All that is to be said of the offers, a sentence each."""
        return (*self.offers.notes, *((LATE,) if self._is_late else ()))

    async def look(self, seconds: float = LOOK_SECONDS) -> Offers:
        """The offers as of now, or as of the last look when a new one takes longer than so many seconds."""
        asked = time.monotonic()
        # One look at a time; one that had begun before we asked may have missed what we are asked for.
        while self._begun < asked or self._looking is not None:
            looking = self._looking or self._start()
            done, _ = await asyncio.wait([looking], timeout=asked + seconds - time.monotonic())
            if not done:
                self._late()
                break
        return self.offers

    def _late(self) -> None:
        if not self._is_late:
            log.warning("%s", LATE)
        self._is_late = True

    def _start(self) -> asyncio.Future[None]:
        """A thread that nobody waits for at the end: a disk that does not answer must not keep the daemon."""
        loop = asyncio.get_running_loop()
        self._begun, self._looking = time.monotonic(), loop.create_future()
        threading.Thread(target=self._run, args=(loop,), name="offers", daemon=True).start()
        return self._looking

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            found = self._scanner.scan()
            offers = self.offers if found == self._found else offers_of(self._configured, found)
            self._found = found
        except Exception as error:
            # Nobody must wait for a thread that is no more.
            log.error("looking at the directories of models failed: %s", places(error))
            offers = self.offers
        try:
            loop.call_soon_threadsafe(self._seen, offers)
        except RuntimeError:
            log.debug("the daemon ended while directories of models were looked at")

    def _seen(self, offers: Offers) -> None:
        for note in offers.notes:
            if note not in self.offers.notes:
                log.warning("%s", note)
        self.offers, self._is_late = offers, False
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.set_result(None)
