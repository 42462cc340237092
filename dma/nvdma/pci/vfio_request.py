"""How does the kernel ask for a function back, whose removal waits until nobody has it open? (linux/vfio.h, REQ_IRQ)"""

from __future__ import annotations

import os
from contextlib import ExitStack

from nvdma.pci.vfio_calls import DEVICE_SET_IRQS, IRQ_SET, IRQ_SET_EVENTFD, IRQ_SET_TRIGGER, REQUEST_IRQ, call


def watch(device: int, stack: ExitStack) -> int:
    """An eventfd(2) that becomes readable when the kernel wants the function of descriptor `device`: it is unplugged,
    or somebody unbinds its driver. `stack` closes it. Raises VfioError.

    It stays in force when `device` is closed here and open in another process.
    """
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    stack.callback(os.close, event)
    argument = IRQ_SET.pack(IRQ_SET.size, IRQ_SET_EVENTFD | IRQ_SET_TRIGGER, REQUEST_IRQ, 0, 1, event)
    call(device, DEVICE_SET_IRQS, argument, "asking to be told of the function's removal")
    return event
