"""Which call kills engines? One that was there at two deaths, and did not get on between them, is tried alone. Pure.

A call that only waited in the engine's queue was not there. One that kills an engine while it is alone is failed, and
is refused when it is sent again. One that could not be tried has nothing proven against it: sent again it is a suspect.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from nvstreamd.errors import PoisonedRequest
from nvstreamd.supervisor.commands import Order
from nvstreamd.supervisor.to_engine import digest_of

DEATHS = 2
# How long a suspect waits for an engine without other calls.
PATIENCE_SECONDS = 30.0
MOST_REMEMBERED = 256
# Tokens of prompts that a pass takes at most, where the configuration bounds them no further: engine/pacing.py's MOST,
# which the process of root does not import.
MOST_CHUNK = 4096


def poisoned(why: str) -> PoisonedRequest:
    """The failure of a suspect."""
    return PoisonedRequest(f"engines died twice while they worked on this request, and {why}",
                           "change the request; the log says how the engines died")


@dataclass(slots=True, eq=False)
class CallRecord:
    """The record of one call. `prefilled` is how many tokens of its prompt were computed when it was cleared last.

    It `waits` while it is in the engine's queue. `since` is when the last engine died, of time.monotonic.
    """

    order: Order
    deaths: int = 0
    prefilled: int = 0
    waits: bool = False
    since: float | None = None

    @property
    def is_suspect(self) -> bool:
        """True when it is to be tried alone."""
        return self.deaths >= DEATHS

    def generated(self) -> None:
        """Clears it: it got a token that it never had."""
        self.deaths = 0

    def prefilled_to(self, done: int, chunk: int) -> None:
        """Clears it when it got clearly further than before.

        What kills at a certain token is reached in chunks that are cut by the company: by two of them it would be past.
        """
        if done > self.prefilled + 2 * chunk:
            self.prefilled, self.deaths = done, 0

    def died(self) -> None:
        """Notes that its engine died while it worked on it."""
        if not self.waits:
            self.deaths += 1
        self.waits = False


class Poison:
    """Calls that killed an engine while they were alone, and suspects that were not tried, by user: the last few."""

    def __init__(self) -> None:
        # True of those that are proven.
        self._known: OrderedDict[tuple[int, bytes], bool] = OrderedDict()

    def record(self, order: Order) -> CallRecord:
        """The record of a new call. Raises PoisonedRequest when it is known to kill."""
        # A digest takes as long as a call is: it is made for nobody but those who sent such a one.
        if not any(uid == order.uid for uid, _ in self._known):
            return CallRecord(order)
        key = order.uid, digest_of(order)
        if self._known.get(key):
            raise poisoned("so did one like it while it was the only one")
        return CallRecord(order, deaths=DEATHS if self._known.pop(key, None) is not None else 0)

    def remember(self, record: CallRecord, proven: bool) -> None:
        """Keeps a call, to be refused if it is proven, else to be tried."""
        self._known[record.order.uid, digest_of(record.order)] = proven
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
