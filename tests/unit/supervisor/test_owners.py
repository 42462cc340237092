"""Are the uids of a user's containers counted as that user, and everybody else's as their own?"""

from __future__ import annotations

from pathlib import Path

import pytest

from nvstreamd.supervisor import owners
from nvstreamd.supervisor.owners import Owners


def test_uids_of_a_range_are_their_owners_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("root:200000:10\n1000:100000:65536\nnobody-has-this-name:300000:5\n# no range\nx:y:z\n1:2\n")
    found = Owners(file)
    assert [found.of(uid) for uid in (99_999, 100_000, 165_535, 165_536)] == [99_999, 1000, 1000, 165_536]
    assert found.of(200_009) == 0 and found.of(200_010) == 200_010
    assert found.of(300_001) == 300_001 and found.of(0) == 0


def test_a_file_that_changes_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "FRESH_SECONDS", -1.0)
    file = tmp_path / "subuid"
    found = Owners(file)
    assert found.of(100_000) == 100_000
    file.write_text("1000:100000:1\n")
    assert found.of(100_000) == 1000
    file.unlink()
    assert found.of(100_000) == 100_000
