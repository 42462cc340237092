"""Is what an engine says of itself bounded, before everybody's status repeats it?"""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from nvstreamd.supervisor.reports import Beat
from nvstreamd.supervisor.watch import Watch


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_time_that_is_none_does_not_reach_status(said: float) -> None:
    """No user's GetStatus was answered while one engine said so."""
    watch = Watch()
    watch.heard(Beat(steps=1, work=True, pass_seconds=said))
    assert timedelta(seconds=watch.pass_seconds) == timedelta(0)
    watch.heard(Beat(steps=2, work=True, pass_seconds=1.5))
    assert watch.pass_seconds == 1.5
