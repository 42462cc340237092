"""Which call is prepared next? Pure: no processes, no threads, no clock.

Users take turns. What is cheap has a lane of its own, so it passes what is costly; of the costly ones a user has one at
a time under way.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from nvstreamd.engine.commands import Call
from nvstreamd.engine.preparation.questions import CHEAP, Ask


@dataclass(slots=True, eq=False)
class Job:
    """A call to prepare. `asks` is what workers are asked, if anything; `cost` that of what is not known yet."""

    call: Call
    asks: Sequence[Ask]
    cost: int
    is_cancelled: bool = False

    @property
    def id(self) -> int:
        """The number of the call."""
        return self.call.id

    @property
    def uid(self) -> int:
        """The user whose call it is."""
        return self.call.uid

    @property
    def share(self) -> int:
        """The user whose turn it takes."""
        return self.call.share

    @property
    def costly(self) -> bool:
        """True when it may keep a processor busy for long."""
        return self.cost > CHEAP


class Turns:
    """Jobs in the order they came for each uid; uids take turns."""

    def __init__(self) -> None:
        self._of: OrderedDict[int, deque[Job]] = OrderedDict()

    def put(self, job: Job) -> None:
        """Behind what its uid already waits for."""
        self._of.setdefault(job.share, deque()).append(job)

    def take(self, busy: frozenset[int] = frozenset()) -> Job | None:
        """The next of the uid whose turn it is; uids in `busy` are passed over."""
        for uid, jobs in self._of.items():
            if uid not in busy:
                job = jobs.popleft()
                del self._of[uid]
                if jobs:
                    self._of[uid] = jobs
                return job
        return None

    def remove(self, job: Job) -> bool:
        """Forgets a job; False when it does not wait here."""
        jobs = self._of.get(job.share)
        if jobs is None or job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._of[job.share]
        return True


class Desk:
    """The jobs that wait to be prepared, and the costly ones that are under way."""

    def __init__(self) -> None:
        self._cheap, self._costly = Turns(), Turns()
        self._under_way: dict[int, Job] = {}

    def put(self, job: Job) -> None:
        """Queues a job."""
        (self._costly if job.costly else self._cheap).put(job)

    def take(self, costly: bool) -> Job | None:
        """The next job of a lane, None when there is none to begin now. A costly one is to be given to `done`."""
        if not costly:
            return self._cheap.take()
        job = self._costly.take(frozenset(self._under_way))
        if job is not None:
            self._under_way[job.share] = job
        return job

    def done(self, job: Job) -> None:
        """Lets the next costly job of that user begin."""
        if self._under_way.get(job.share) is job:
            del self._under_way[job.share]

    def remove(self, job: Job) -> bool:
        """Forgets a job that waits; False when it is under way, or over."""
        return self._cheap.remove(job) or self._costly.remove(job)
