"""How much of something may one user have, while others may want it too? As much as is left for all the others."""

from __future__ import annotations

from collections.abc import Callable

from nvstreamd.errors import QuotaExceeded

# The part of what a user has at most that is kept for each who comes last.
A_LITTLE = 64


class Pool:
    """Units of something: places in a queue, open calls, bytes. `alone` is what a user has at most.

    The pool has twice as much. Nobody gets more than what is then left for everybody else: a user who takes all that is
    allowed leaves as much again (Choudhury and Hahne, Dynamic Queue Length Thresholds, 1998, with a factor of one).
    Each user who comes and keeps everything halves what is left, so ten of them leave nothing. For users who come after
    that there is half of `alone` on top, of which each gets only a little.
    """

    def __init__(self, what: str, alone: int, hint: str) -> None:
        self.what = what
        self.alone = alone
        self._capacity = 2 * alone
        self._in_all = self._capacity + alone // 2
        self._little = max(1, alone // A_LITTLE)
        self._hint = hint
        self._taken: dict[int, int] = {}
        self._total = 0

    @property
    def uids(self) -> set[int]:
        """Users who have any."""
        return set(self._taken)

    def taken(self, uid: int) -> int:
        """How much a user has."""
        return self._taken.get(uid, 0)

    def take(self, uid: int, amount: int = 1) -> Callable[[], None]:
        """Takes for a user; what is returned gives it back, once. Raises QuotaExceeded when that is too much."""
        own = self.taken(uid) + amount
        total = self._total + amount
        is_little = own <= self._little and total <= self._in_all
        if own > self._capacity - total and not is_little:
            raise QuotaExceeded(f"{self.taken(uid)} {self.what} are yours, {self._total} everybody's", self._hint,
                                field=self.what)
        self._add(uid, amount)
        left = [amount]

        def give_back() -> None:
            if left:
                self._add(uid, -left.pop())

        return give_back

    def _add(self, uid: int, amount: int) -> None:
        self._total += amount
        now = self.taken(uid) + amount
        if now:
            self._taken[uid] = now
        else:
            self._taken.pop(uid, None)
