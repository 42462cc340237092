"""May this request begin, and with which seed, share and limits? The same for every way that requests come."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from nvstreamd.config import Config, QuotaConfig
from nvstreamd.errors import QuotaExceeded
from nvstreamd.supervisor.commands import Terms
from nvstreamd.supervisor.meter import Meter
from nvstreamd.supervisor.pools import Pool
from nvstreamd.supervisor.quotas import Quotas

SEED_BITS = 63
BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that was let in, on `terms`. `charge` counts tokens, `release` gives its place back, once."""

    terms: Terms
    charge: Callable[[int], None]
    release: Callable[[], None]


class Admission:
    """Places for requests, by model, and what users have had."""

    def __init__(self, config: Config) -> None:
        self.quotas = Quotas(config.quotas)
        self.meter = Meter(config.usage)
        self._alone = config.max_running + config.max_queued
        self._places: dict[str, Pool] = {}
        self._requests: dict[int, int] = {}

    def quota(self, uid: int, gid: int | None) -> QuotaConfig:
        """The quota of a user."""
        return self.quotas.of(uid, gid)

    @property
    def uids(self) -> set[int]:
        """Users who have requests, or had tokens today."""
        return {*self._requests, *self.meter.uids}

    def requests(self, uid: int) -> int:
        """How many requests of a user are open."""
        return self._requests.get(uid, 0)

    def admit(self, model: str, uid: int, gid: int | None) -> Ticket:
        """Lets a request in, and says on which terms: it uses the share of `uid`. Raises QuotaExceeded."""
        quota = self.quota(uid, gid)
        if quota.requests is not None and self.requests(uid) >= quota.requests:
            raise QuotaExceeded(f"{self.requests(uid)} requests of yours are open, {quota.requests} may be",
                                "let one end first", field="requests")
        self.meter.check(uid, quota)
        places = self._places.setdefault(model, Pool(f"requests for {model}", self._alone, "try again later"))
        give_back = places.take(uid)
        self._requests[uid] = self.requests(uid) + 1
        # The seed is chosen here, so that a replay in another engine draws the same tokens.
        terms = Terms(uid, quota.weight, quota.priority == BATCH, quota.longest_context or 0,
                      secrets.randbits(SEED_BITS))

        def release() -> None:
            give_back()
            left = self._requests.pop(uid) - 1
            if left:
                self._requests[uid] = left

        return Ticket(terms, lambda tokens: self.meter.charge(uid, tokens, quota), release)
