"""Can whoever waits for an engine's end be told to stop waiting, at any moment?"""

from __future__ import annotations

import asyncio

from nvstreamd.supervisor.commands import Describe
from nvstreamd.supervisor.engine_uids import EngineUsers, Task
from nvstreamd.supervisor.process import EngineProcess

# More steps of the event loop than stopping an engine takes that has ended.
STEPS = 20


def test_a_cancelled_stop_is_cancelled_or_over() -> None:
    """A cancellation that got lost left a daemon that was told to end waiting for its model for ever."""
    asyncio.run(_cancel_at_each_step())


async def _cancel_at_each_step() -> None:
    engine = EngineProcess(EngineUsers(), Task.SERVE)
    await engine.start(Describe([]), [])
    engine.kill()
    await engine.stop()
    for steps in range(STEPS):
        stopping = asyncio.create_task(engine.stop())
        for _ in range(steps):
            await asyncio.sleep(0)
        was_asked = stopping.cancel()
        await asyncio.wait([stopping])
        assert stopping.cancelled() or not was_asked, f"the cancellation after {steps} steps was lost"
