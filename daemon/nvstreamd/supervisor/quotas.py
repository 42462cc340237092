"""What may a user have, by the administrator's word? Weight and class of their share, and limits on top of it."""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Sequence
from contextlib import suppress

from nvstreamd.config import QuotaConfig

# Of what the system's databases of users and groups said.
FRESH_SECONDS = 60.0
MOST_KNOWN = 4096


class Quotas:
    """The entries of `[[quotas]]`: that of the user's name, else the first of a group of theirs, else the general."""

    def __init__(self, entries: Sequence[QuotaConfig]) -> None:
        self._entries = entries
        self._known: dict[tuple[int, int | None], tuple[float, QuotaConfig]] = {}

    def of(self, uid: int, gid: int | None) -> QuotaConfig:
        """The entry for a caller whose process has that gid; None: no group but those of the account."""
        now = time.monotonic()
        found = self._known.get((uid, gid))
        if found is None or now - found[0] > FRESH_SECONDS:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self._known[uid, gid] = now, self._look_up(uid, gid)
        return found[1]

    def _look_up(self, uid: int, gid: int | None) -> QuotaConfig:
        if not self._entries:
            return QuotaConfig()
        names, numbers = {str(uid)}, set[int]() if gid is None else {gid}
        with suppress(KeyError):
            account = pwd.getpwuid(uid)
            names.add(account.pw_name)
            # The account's own group stays theirs whichever group a process of theirs took: newgrp(1).
            numbers.update(os.getgrouplist(account.pw_name, account.pw_gid))
        groups = set(map(str, numbers))
        for number in numbers:
            with suppress(KeyError):
                groups.add(grp.getgrgid(number).gr_name)
        by_user = [entry for entry in self._entries if entry.user in names]
        by_group = [entry for entry in self._entries if entry.group in groups]
        general = [entry for entry in self._entries if entry.user is None and entry.group is None]
        return next(iter([*by_user, *by_group, *general]), QuotaConfig())
