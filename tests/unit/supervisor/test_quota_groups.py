"""Whose entry does a user get, whatever their processes do?"""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from nvstreamd.config import QuotaConfig
from nvstreamd.supervisor.quotas import Quotas

UID, STUDENTS, AUDIO = 4001, 4100, 4200
GROUPS = {STUDENTS: "students", AUDIO: "audio"}


@pytest.fixture(autouse=True)
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a user whose account is in `students`, and who is a member of `audio` as well."""
    account = pwd.struct_passwd(("alice", "x", UID, STUDENTS, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {UID: account}.__getitem__)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, AUDIO])
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((GROUPS[gid], "x", gid, [])))


@pytest.mark.parametrize("gid", [STUDENTS, AUDIO, None])
def test_nobody_leaves_the_limits_of_their_group_by_newgrp(gid: int | None) -> None:
    entries = [QuotaConfig(group="students", tokens_per_day=10), QuotaConfig(weight=2)]
    assert Quotas(entries).of(UID, gid) is entries[0]


def test_a_uid_without_an_account_has_the_entry_of_its_number_or_of_its_process_group() -> None:
    entries = [QuotaConfig(user="5000", weight=3), QuotaConfig(group="audio", weight=4), QuotaConfig(weight=5)]
    assert [Quotas(entries).of(*caller).weight for caller in ((5000, AUDIO), (5001, AUDIO), (5001, None))] == [3, 4, 5]
