"""How does a test make a real engine fail, or speak nonsense, at a moment of its choice?

Python imports this file first in each process of a daemon that was started with `support.sabotage`. An engine gets a
thread more, which runs what comes through a FIFO of its own: what NVSTREAM_SABOTAGE names, and its pid.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any


def sabotage(orders: str) -> None:
    """Puts itself before Channel.send: when an engine first says something, it has forked what it forks."""
    from nvstreamd.engine.channel import Channel

    send = Channel.send
    # Before its walls: behind them it makes none.
    os.mkfifo(f"{orders}-{os.getpid()}")

    def first_send(channel: Channel, report: Any) -> None:
        Channel.send = send  # type: ignore[method-assign]
        threading.Thread(target=obey, args=(orders, channel), daemon=True).start()
        send(channel, report)

    Channel.send = first_send  # type: ignore[method-assign]


def obey(orders: str, channel: Any) -> None:
    """Runs one order after the other, and says when it has."""
    while True:
        with open(f"{orders}-{os.getpid()}", encoding="utf-8") as source:
            code = source.read()
        said = ""
        try:
            exec(compile(code, "<sabotage>", "exec"), {"channel": channel, "socket": channel._socket})
        except Exception as error:
            said = repr(error)
        with open(f"{orders}.done.draft", "w", encoding="utf-8") as out:
            out.write(said)
        os.rename(f"{orders}.done.draft", f"{orders}.done")


def have_a_card() -> None:
    """Gives an engine a card that is fibers (support.fiber_gpu): its driver's calls and its compiler are others."""
    from nvstreamd.kernels import gpu_open

    def open_card(number: int, vram: int, kept: Path | None, stack: ExitStack) -> Any:
        from nvstreamd.kernels.gpu_device import GpuDevice
        from support.fiber_gpu import FiberCompiler, FiberDriver

        return GpuDevice(FiberDriver(), FiberCompiler(), stack, vram)

    gpu_open.open_card = open_card


if "NVSTREAM_FIBER_CARD" in os.environ and "nvstreamd.engine" in sys.orig_argv:
    have_a_card()
if "NVSTREAM_SABOTAGE" in os.environ and "nvstreamd.engine" in sys.orig_argv:
    sabotage(os.environ["NVSTREAM_SABOTAGE"])
